"""Packages as pip would install them: their modules beside the metadata in which entry points are declared."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path


def install(package: Path, site: Path) -> Path:
    """The folder ``site`` with a package's modules and packages in it; it belongs on the module search path."""
    project = tomllib.loads((package / "pyproject.toml").read_text())
    site.mkdir(parents=True, exist_ok=True)
    for module in project["tool"]["setuptools"].get("py-modules", []):
        shutil.copy(package / f"{module}.py", site)
    for folder in project["tool"]["setuptools"].get("packages", []):
        shutil.copytree(package / folder, site / folder)
    name, version = project["project"]["name"], project["project"]["version"]
    metadata = site / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, entries in project["project"]["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {module}" for key, module in entries.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return site
