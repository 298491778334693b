"""The tokenizer room: characters, bytes, BPE and words; what turns text into ids and back. Needs no torch."""
