"""What a workload needs, part by part. `estimate` is the entry; formulas are pure functions."""
