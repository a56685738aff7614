"""The version of medmamba, told once."""

__version__ = "0.1.0"
