"""Flat images without millimetres: PNG, TIFF, BMP and JPEG, grey or RGB; masks as PNG, TIFF or BMP.

Of the array, i is the column and j the row (see medmamba/geometry), of pixels reoriented by their orientation tag
(EXIF 2.3 and TIFF 6.0, tag 0x0112). Pillow decodes the pixels; refused although Pillow accepts it: wrong checksums of
a PNG, several pages, 16-bit colours (Pillow reduces them to 8 bits).
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medmamba.disk.atomic import Verify, write_atomically
from medmamba.errors import InputError, ResourceError
from medmamba.geometry import Grid
from medmamba.images.checked import Decoded, Like, Stored, grid_of, header_of
from medmamba.images.gate import ReadOptions, check_memory, check_size, open_regular, shown

KINDS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP", ".jpg": "JPEG", ".jpeg": "JPEG"}
GREY = ("1", "L", "I", "I;16", "I;16B", "I;16L", "F")
EXIF_ORIENTATION = 0x0112
SAMPLE_FORMAT, SIGNED = 339, 2  # of TIFF 6.0; Pillow takes signed 8-bit numbers for unsigned ones
TURNED_BACK = (0, 3, 1, 5, 2, 6, 4)
"""For the tags 2 to 8, the Image.Transpose from reoriented to stored pixels."""


def read(path: Path, where: str, options: ReadOptions, *, mask: bool) -> Decoded:
    """Grey values (1, i, j, 1) or colours (3, i, j, 1); of a mask one channel, a palette's numbers too."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    file, size = open_regular(path, where)
    with file:
        if size > options.max_voxels * 8:
            raise InputError(f"{where}: {size} bytes, more than any image within the limit. Is it the right file?")
        check_memory(size, where)
        raw = io.BytesIO(file.read())
    kinds = sorted(set(KINDS.values()))
    warnings: list[str] = []
    try:
        with Image.open(raw, formats=kinds) as image:
            image.verify()  # every checksum of a PNG, and its end; it closes the image
        with Image.open(raw, formats=kinds) as image:
            kind = str(image.format)
            pages = int(getattr(image, "n_frames", 1))
            if pages > 1:
                raise InputError(f"{where}: {pages} pages. Give one image per file, or the volume as NIfTI.")
            check_size((image.width, image.height, len(image.getbands())), where, options.max_voxels)
            check_memory(image.width * image.height * len(image.getbands()) * 8, where)
            if image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in image.tile):
                raise InputError(f"{where}: 16-bit colours. Save it in 8-bit colours or 16-bit grey.")
            tags = getattr(image, "tag_v2", {})
            lossy = kind == "JPEG" or image.info.get("compression") in ("jpeg", "tiff_jpeg")
            mark = image.getexif().get(EXIF_ORIENTATION, 1)
            turned = mark if mark in range(2, 9) else None
            if turned and not mask:
                warnings.append(f"{where}: reoriented by its orientation tag (EXIF). Masks must be oriented alike.")
            pixels = _pixels(ImageOps.exif_transpose(image), mask, where, warnings)
            if pixels.dtype == np.uint8 and set(np.atleast_1d(tags.get(SAMPLE_FORMAT, 1))) == {SIGNED}:
                pixels = pixels.view(np.int8)
    except InputError:
        raise
    except UnidentifiedImageError:
        if raw.getvalue()[:4] in (b"II*\0", b"MM\0*"):
            cure = "Save it with 8 or 16 bits, or as 32-bit real numbers."
            raise InputError(f"{where}: a TIFF with numbers of a kind that is not read. {cure}") from None
        raise InputError(f"{where}: not a PNG, TIFF, BMP or JPEG image. Check the file.") from None
    except Exception as error:  # decoders raise what they like for damaged files
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise InputError(f"{where}: damaged or cut off ({reason}). Copy it again from its source.") from None
    if mask and lossy:
        plain = "PNG or TIFF" if kind == "JPEG" else "PNG, or as TIFF with another compression"
        raise InputError(f"{where}: JPEG changes label values. Save masks as {plain}.")
    rows = np.atleast_3d(pixels)  # (j, i, C)
    stored = np.ascontiguousarray(np.moveaxis(rows, -1, 0)).transpose(0, 2, 1)[..., None]
    if mask and any(not np.array_equal(stored[0], other) for other in stored[1:]):
        raise InputError(f"{where}: a mask in colours. Save it in grey, with the label's number as value.")
    values = stored[:1] if mask else stored
    return Decoded(values, Grid(stored.shape[1:]), turned, tuple(warnings), orientation_known=False)


def same_place(found: Decoded, like: Like) -> bool:
    """A flat image has a size and no place."""
    return found.grid == Grid(grid_of(like).shape)


def _pixels(image: Any, mask: bool, where: str, warnings: list[str]) -> npt.NDArray[Any]:
    """Numbers (j, i) or (j, i, C) of an opened image."""
    mode = image.mode
    if mode == "P" and not mask:
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        mode = image.mode
    if mode in ("LA", "RGBA"):
        alpha = np.asarray(image.getchannel("A"))
        if alpha.min() < 255:
            raise InputError(f"{where}: partly transparent. Save it without an alpha channel.")
        warnings.append(f"{where}: an alpha channel that hides nothing was left out.")
        return np.asarray(image)[..., 0] if mode == "LA" else np.asarray(image)[..., :3]
    if mode not in (*GREY, "P", "RGB"):
        raise InputError(f"{where}: its colours are {mode}. Save it in grey or RGB.")
    pixels = np.asarray(image)
    return pixels.astype(np.uint8) if pixels.dtype == np.bool_ else pixels


def write(path: Path, stored: Stored, like: Like, *, mask: bool, verify: Verify) -> None:
    """Writes one or three channels (C, i, j, 1) of unsigned numbers, 8 bits, or 16 in grey; a mask never as JPEG."""
    from PIL import Image

    kind = KINDS[path.suffix.lower()]
    if mask and kind == "JPEG":
        raise InputError(f"{shown(path)}: JPEG changes label values. Write masks as PNG or TIFF.")
    if stored.shape[3] != 1:
        raise InputError(f"{shown(path)}: {stored.shape[3]} slices do not fit into a flat image. Write NIfTI instead.")
    if len(stored) not in (1, 3):
        raise ValueError(f"A flat image has one channel or three, not {len(stored)}.")
    rows = np.ascontiguousarray(stored[..., 0].transpose(2, 1, 0)).squeeze(axis=2 if len(stored) == 1 else ())
    if rows.dtype not in (np.uint8, np.uint16) or (rows.dtype == np.uint16 and (len(stored) == 3 or kind == "BMP")):
        raise InputError(f"{shown(path)}: values of type {rows.dtype} do not fit into a {kind}. Write NIfTI instead.")
    buffer, picture = io.BytesIO(), Image.fromarray(rows)
    options: dict[str, Any] = {"compression": "tiff_deflate"} if kind == "TIFF" else {}
    if kind != "BMP" and (mark := header_of(like, int)):
        # Stored like its image, so that both also match for readers that ignore the tag.
        picture = picture.transpose(Image.Transpose(TURNED_BACK[mark - 2]))
        options["exif"] = Image.Exif()
        options["exif"][EXIF_ORIENTATION] = mark
    try:
        picture.save(buffer, format=kind, **options)
    except OSError as error:
        raise ResourceError(f"Cannot write {shown(path)}: {error}. Write NIfTI instead.") from None
    with write_atomically(path, verify=None if kind == "JPEG" else verify) as file:
        file.write(buffer.getvalue())
