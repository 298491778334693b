"""Callbacks of a run that measure nothing and change no network: exact randomness, checkpoints, progress."""
