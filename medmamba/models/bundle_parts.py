"""The hashes of a bundle's parts: whether its files are those of one export."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmamba.disk.atomic import write_json
from medmamba.disk.own_files import file_sha256
from medmamba.errors import ConfigError
from medmamba.plans.json_record import read_stored, sealed

PARTS = "models/parts.json"
METADATA = "configs/metadata.json"
_KIND, _CURE = "list of a bundle's parts", "Copy the bundle again, or export it again."
_USED = ("model.json", "plan.json", "fingerprint.json", "best.json", "expectations.json")
"""Files that prediction reads, beside the settings in metadata.json and the weights, which have hashes of their own."""


@dataclass(frozen=True)
class _Parts:
    """``settings_sha256`` is of the entry "medmamba" of metadata.json, ``files`` of whole files by name."""

    settings_sha256: str
    files: dict[str, str]


def record_parts(bundle: Path, files: list[Path]) -> None:
    """Write the hashes of ``files``, all parts of a new bundle; weights and metadata have other proofs."""
    hashes = {path.relative_to(bundle).as_posix(): file_sha256(path) for path in files if path.suffix != ".pt"}
    hashes.pop(METADATA, None)
    write_json(bundle / PARTS, sealed({"settings_sha256": _settings_sha256(bundle), "files": hashes}))


def record_part(bundle: Path, path: Path) -> None:
    """Put one more file into the hashes of a bundle; nothing for a bundle of a version that had none."""
    if (bundle / PARTS).is_file():
        parts = read_stored(bundle / PARTS, _Parts, _KIND, _CURE)
        files = {**parts.files, path.relative_to(bundle).as_posix(): file_sha256(path)}
        write_json(bundle / PARTS, sealed({"settings_sha256": parts.settings_sha256, "files": files}))


def check_parts(bundle: Path) -> tuple[str, ...]:
    """A warning about parts that are not those of the export, and that prediction by medmamba does not read.

    Raises ConfigError for one that it reads. Bundles of earlier versions have no hashes.
    """
    if not (bundle / PARTS).is_file():
        return ()
    parts = read_stored(bundle / PARTS, _Parts, _KIND, _CURE)
    other = [name for name, sha256 in parts.files.items() if not _is_file(bundle / name, sha256)]
    if _settings_sha256(bundle) != parts.settings_sha256:
        other.insert(0, METADATA)
    used = [name for name in other if name == METADATA or name.rsplit("/", 1)[-1] in _USED]
    if used:
        raise ConfigError(f"{bundle / used[0]}: not the one that was exported with the other parts (SHA-256). {_CURE}")
    if not other:
        return ()
    more = f" and {len(other) - 3} more" if len(other) > 3 else ""
    return (
        f"{bundle}: {', '.join(other[:3])}{more} not as exported with the other parts (SHA-256); MONAI may predict "
        "other masks than medmamba",
    )


def _is_file(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


def _settings_sha256(bundle: Path) -> str:
    """Of the settings of the exported model; the rest of metadata.json is a card that may be edited."""
    metadata = read_stored(bundle / METADATA, dict[str, Any], "metadata of a bundle", _CURE)
    return hashlib.sha256(json.dumps(metadata.get("medmamba"), sort_keys=True).encode()).hexdigest()
