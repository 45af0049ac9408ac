"""Studies: variants x seeds, statistics, comparison with published numbers, report."""
