"""Deformable convolution: reference, C++ and Triton."""
