"""This machine: processes, signals, SLURM's variables."""
