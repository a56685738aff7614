"""The scan of Mamba-2 by chunks of matrix products; one file per backend."""
