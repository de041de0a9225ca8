"""Run a plan: start ranks, watch them, stop them, record what they did."""
