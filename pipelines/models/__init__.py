"""Checkpoints and tokenizers: find, check, hash, load."""
