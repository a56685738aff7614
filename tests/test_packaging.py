"""The package is what pyproject.toml says, however it is reached."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAPPED = ("kernels", "plans", "cli")


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_folder_with_an_init_file_is_listed_as_a_package():
    mapping = _project()["tool"]["setuptools"]["package-dir"]
    found = set()
    for name, folder in mapping.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join([name, *inner]))
    assert found == set(_project()["tool"]["setuptools"]["packages"])


def test_mapped_folders_are_never_imported_bare_or_relatively():
    bare = re.compile(rf"^\s*(from|import) ({'|'.join(MAPPED)})\b", re.MULTILINE)
    relative = re.compile(r"^\s*from \.", re.MULTILINE)
    shipped = ("medmamba", *MAPPED)
    for folder in (*shipped, "tests", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            wrong = bare.search(text) or (folder in shipped and relative.search(text))
            assert not wrong, f"{path}: write `from medmamba.… import …`"


def test_bare_names_are_not_importable_outside_the_checkout(tmp_path):
    code = "import importlib.util as u; print([n for n in ('kernels','plans','cli') if u.find_spec(n)])"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_direct_dependencies_are_pinned_in_both_constraint_files():
    project = _project()["project"]
    wanted = project["dependencies"] + [
        d
        for name in ("test", "lint", "bundle", "dicom", "export", "serve", "docs")
        for d in project["optional-dependencies"][name]
    ]
    names = {re.split(r"[<>=;\[ ]", requirement)[0].lower() for requirement in wanted}
    for file in ("constraints-cpu.txt", "constraints-cuda.txt"):
        text = (ROOT / "requirements" / file).read_text()
        if "-c constraints-cpu.txt" in text:
            text += (ROOT / "requirements" / "constraints-cpu.txt").read_text()
        pinned = {line.split("==")[0].lower() for line in text.splitlines()}
        assert names <= pinned, f"{file} lacks {sorted(names - pinned)}"


def test_import_and_help_load_nothing_heavy():
    code = (
        "import sys, medmamba.cli.main as m; import contextlib\n"
        "with contextlib.suppress(SystemExit): m.app(['--help'])\n"
        "heavy = {'torch', 'monai', 'SimpleITK', 'nibabel', 'matplotlib', 'triton', 'scipy', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.slow
def test_an_installed_wheel_holds_the_four_packages_and_no_bare_ones(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", ROOT], check=True
    )
    names = {path.name for path in (tmp_path / "site").iterdir()}
    assert "medmamba" in names
    assert not names & set(MAPPED)
    code = (
        "import medmamba, medmamba.kernels as k, medmamba.plans, medmamba.cli.main; "
        "assert 'site' in medmamba.__file__; print(k.available_backends()[0])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "cpp"
    code = "from medmamba.demo import example_data as d; p = d(); print(p, len(list((p / 'imagesTr').iterdir())))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == [str(tmp_path / "site" / "medmamba" / "demo_data"), "45"]
    for name in (
        "pages/templates/viewer.js",
        "pages/templates/base.html",
        "bundle/logging.conf",
        "bundle/schema.json",
        "py.typed",
    ):
        assert (tmp_path / "site" / "medmamba" / name).is_file()
    size = sum(path.stat().st_size for path in (tmp_path / "site" / "medmamba").rglob("*") if path.is_file())
    assert size < 15 * 2**20


def test_a_predictor_loads_neither_monai_nor_the_compiler_of_torch():
    code = (
        "import sys, medmamba.inference.folder.run, medmamba.networks.build as r; r.available_networks()\n"
        "heavy = {'monai', 'matplotlib', 'pandas', 'skimage', 'triton', 'torch._dynamo', 'blosc2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_torch_marks_a_function_that_is_compile_constant_as_we_do():
    import torch

    from medmamba.kernels.scan.api import choose_scan_backend

    def other() -> None: ...

    torch.compiler.assume_constant_result(other)
    assert set(vars(other)) <= set(vars(choose_scan_backend))
