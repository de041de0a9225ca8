"""Analysis of a run: training dynamics, token weights, and how far the model moved."""
