"""Run a plan: start the ranks, watch them, stop them, and record what happened."""
