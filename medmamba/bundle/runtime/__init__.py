"""Shipped in bundles: files that run there with torch, numpy, MONAI and scipy alone (tests/bundle/test_sources.py)."""
