"""Every objective from one base over seeds: arms, rows, tables."""
