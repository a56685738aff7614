"""Mamba-3's scan: trapezoidal steps, a state that turns, several inputs and outputs."""
