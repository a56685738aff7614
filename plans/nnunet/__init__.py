"""nnU-Net's planner reproduced: its rules, its plans files, and the comparison with its own decisions."""
