"""Verification against the originals: golden files of published modules, rebuilt and compared number by number."""
