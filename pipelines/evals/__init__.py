"""Questions, answers, benchmarks, intervals, contamination."""
