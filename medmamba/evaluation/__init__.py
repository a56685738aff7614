"""Comparison of predictions with the truth."""
