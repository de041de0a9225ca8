"""Training data: sources, records, packing and the score cache."""
