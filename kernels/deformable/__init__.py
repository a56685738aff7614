"""Deformable convolution in two and three dimensions; one file per backend."""
