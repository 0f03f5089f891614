"""Measurements: ratios and medians of this machine, never pass or fail."""
