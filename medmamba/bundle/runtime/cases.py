"""Shipped in bundles: the list of images in a folder, named as nnU-Net names them."""

import re
from pathlib import Path

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
EXPECTED_ENDING = "_expected.json"
"""What is expected of the mask of X stands in X_expected.json beside it."""
_CHANNEL = re.compile(r"^(.+)_(\d{4})$", re.DOTALL)


def stem_of(name: str) -> str:
    """The name of a file without the ending of an image."""
    ending = next((ending for ending in ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def image_list(folder: str, channel_files: int = 0, labels: str | None = None) -> list[dict[str, str | list[str]]]:
    """One entry ``{"image": …}`` per case: a file, or its files ``X_0000``, ``X_0001``, … in the order of channels.

    Only numbers below ``channel_files`` are channels; all others are part of the case name. With a folder
    of ``labels`` every entry also has the ``"label"`` of the same name, and a case without is left out.
    """
    stems: dict[str, str] = {}
    for path in sorted(Path(folder).glob("[!.]*")):
        if path.name.lower().endswith(ENDINGS):
            stems[str(path)] = stem_of(path.name)
    numbered = {name: match for name, stem in stems.items() if (match := _CHANNEL.search(stem))}
    beyond = {match[1] for match in numbered.values() if int(match[2]) >= channel_files}
    cases: dict[str, list[str]] = {}
    for name, stem in stems.items():
        match = numbered.get(name)
        cases.setdefault(match[1] if match and match[1] not in beyond else stem, []).append(name)
    if not cases:
        raise FileNotFoundError(f"{folder}: no image here (endings: {', '.join(ENDINGS)}). Give --dataset_dir FOLDER.")
    found: list[dict[str, str | list[str]]] = []
    for stem, files in sorted(cases.items()):
        entry: dict[str, str | list[str]] = {"image": files[0] if len(files) == 1 else files}
        if labels is not None:
            label = next((path for ending in ENDINGS if (path := Path(labels, stem + ending)).is_file()), None)
            if label is None:
                continue
            entry["label"] = str(label)
        found.append(entry)
    if not found:
        raise FileNotFoundError(f"{labels}: no label map named as an image in {folder}.")
    return found
