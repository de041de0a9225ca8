"""Comparing objectives from one base over seeds: arms, rows, tables."""
