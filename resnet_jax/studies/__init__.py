"""Runs and comparisons of runs, what they found, and its report."""
