"""Mamba-2's scan by chunks of matrix products: reference and Triton."""
