"""The version of medmamba, the only definition."""

__version__ = "0.1.0"
