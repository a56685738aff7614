"""Images and label maps, in and out: checked when read, checked again when written."""

from medmamba.images.formats import (
    ENDINGS,
    ending_of,
    files_of,
    list_images,
    mask_ending,
    read_channels,
    read_image,
    read_label_map,
    stem_of,
    write_image,
    write_label_map,
    written_files,
)
from medmamba.images.gate import Limits
from medmamba.images.image import LabelMap, MedicalImage, label_counts
from medmamba.images.in_memory import as_image, to_nibabel, to_simpleitk

__all__ = [
    "ENDINGS",
    "LabelMap",
    "Limits",
    "MedicalImage",
    "as_image",
    "ending_of",
    "files_of",
    "label_counts",
    "list_images",
    "mask_ending",
    "read_channels",
    "read_image",
    "read_label_map",
    "stem_of",
    "to_nibabel",
    "to_simpleitk",
    "write_image",
    "write_label_map",
    "written_files",
]
