"""A trained model as a MONAI Bundle: a folder that MONAI runs without medmamba."""
