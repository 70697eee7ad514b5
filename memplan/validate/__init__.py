"""Holding the estimator against recorded measurements: its accuracy as a number."""
