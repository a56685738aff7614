"""Selective-scan operators: reference, C++ for the CPU, dispatch."""
