"""What training did: dynamics, token weights, how far a model moved."""
