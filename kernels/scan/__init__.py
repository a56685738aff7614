"""The selective scan along routes through an image; one file per backend."""
