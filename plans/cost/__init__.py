"""Memory and time of one training step, counted layer by layer from a network's numbers."""
