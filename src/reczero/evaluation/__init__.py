"""Is it any good? Metrics with intervals, baselines, the comparison and the report."""
