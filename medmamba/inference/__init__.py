"""From a checkpoint and an image to a mask on the image's own grid."""
