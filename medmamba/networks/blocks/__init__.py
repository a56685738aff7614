"""Blocks that networks are built from: plain modules, numbers in."""
