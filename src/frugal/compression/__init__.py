"""Smaller after training: `frugal compress RUN` (`verb`, `search`, `plan`), and `frugal.compress` for a plain module
(`plain`). Torch-free until something is compressed."""

from __future__ import annotations

from frugal.compression.verb import main

__all__ = ["main"]
