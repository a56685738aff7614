"""Images and label maps, in and out: checked when read, checked again when written."""

from medmamba.images.formats import (
    Format,
    ending_of,
    files_of,
    format_of,
    known_endings,
    list_images,
    mask_ending,
    read_channels,
    read_image,
    read_label_map,
    register_format,
    stem_of,
    write_image,
    write_label_map,
    written_files,
)
from medmamba.images.gate import ReadOptions
from medmamba.images.image import LabelMap, MedicalImage, label_counts
from medmamba.images.in_memory import as_image, to_nibabel, to_simpleitk

__all__ = [
    "Format",
    "LabelMap",
    "MedicalImage",
    "ReadOptions",
    "as_image",
    "ending_of",
    "files_of",
    "format_of",
    "known_endings",
    "label_counts",
    "list_images",
    "mask_ending",
    "read_channels",
    "read_image",
    "read_label_map",
    "register_format",
    "stem_of",
    "to_nibabel",
    "to_simpleitk",
    "write_image",
    "write_label_map",
    "written_files",
]
