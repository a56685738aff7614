"""Fingerprint, planner and plan schema: pure functions from numbers to numbers with reasons; no torch, no voxel I/O."""
