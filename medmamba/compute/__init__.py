"""Devices, precision and memory of the machine."""
