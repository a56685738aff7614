"""The ``medmamba`` command: each command parses, calls ``medmamba.pipeline`` and shows the result."""
