"""Evaluation: questions, answers, benchmarks, confidence intervals, contamination."""
