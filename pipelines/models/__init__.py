"""Checkpoints and tokenizers: find, check, hash and load them."""
