"""Golden tensors of the published implementations, and the comparison with them."""
