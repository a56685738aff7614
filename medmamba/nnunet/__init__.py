"""Trained nnU-Net v2 models become run folders, without nnU-Net and without running code of their files."""
