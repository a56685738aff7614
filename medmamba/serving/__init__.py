"""A trained model behind HTTP on this machine: a volume in, mask and report out. Needs the extra ``serve``."""
