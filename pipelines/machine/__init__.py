"""Facts about this machine: processes, signals, SLURM's variables."""
