"""Everything that lands on disk goes through medmamba/disk/atomic.py, and nothing that runs code is ever read."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("medmamba", "plans", "cli", "kernels") for path in (ROOT / folder).rglob("*.py"))

# Calls that write, by their last name; np.save and friends would leave half a file when the disk is full.
WRITERS = {"save", "savez", "savez_compressed", "savetxt", "tofile", "write_text", "write_bytes", "save_file", "imsave",
           "savefig", "WriteImage", "to_filename", "dump"}  # fmt: skip
# Files that may use one of them: they write into memory under another name, call a `save` of ours that ends in the
# writer, fill a folder that their caller makes whole or not at all, or keep or unpack something in a scratch folder.
ALLOWED = {
    ("medmamba/bundle/runtime/graphs.py", "save"),
    ("medmamba/bundle/write.py", "open"),
    ("medmamba/bundle/write.py", "save"),
    ("medmamba/bundle/write.py", "write_text"),
    ("medmamba/images/archive.py", "open"),
    ("medmamba/model_selection/candidate.py", "save"),
    ("medmamba/nnunet/write_results.py", "save"),
    ("medmamba/inference/folder/case_job.py", "save"),
    ("medmamba/preprocessing/store.py", "write_bytes"),
    ("medmamba/preprocessing/store.py", "write_text"),
    ("medmamba/serving/answer.py", "save"),
    ("medmamba/serving/upload.py", "open"),
    ("medmamba/training/trainer.py", "save"),
    ("medmamba/disk/atomic.py", "write_text"),
    ("medmamba/disk/atomic.py", "write_bytes"),
    ("medmamba/images/raster.py", "save"),
    ("medmamba/training/pretrain.py", "save"),
}
RUNS_CODE = {"eval", "exec", "pickle", "cPickle", "joblib", "dill", "shelve", "marshal", "extractall", "fileConfig"}


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """(last name, call) of every call in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            found.append((name, node))
    return found


def whole_or_nothing(path: Path) -> list[range]:
    """Lines of the blocks in which a file or a folder is made whole or not at all."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.With):
            makers = {getattr(getattr(item.context_expr, "func", None), "id", "") for item in node.items}
            if makers & {"replace_folder", "write_atomically"}:
                found.append(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


def opens_for_writing(name: str, call: ast.Call) -> bool:
    if name != "open":
        return False
    method = isinstance(call.func, ast.Attribute)
    position = 0 if method else 1
    mode = next((k.value for k in call.keywords if k.arg == "mode"), None) or (
        call.args[position] if len(call.args) > position else None
    )
    return isinstance(mode, ast.Constant) and isinstance(mode.value, str) and bool(set(mode.value) & set("wax+"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_written_through_the_one_writer(path):
    name_of_file = path.relative_to(ROOT).as_posix()
    imported = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "medmamba.disk.atomic"
        for alias in node.names
    }
    wrong = []
    safe = whole_or_nothing(path)
    for name, call in calls(path):
        plain = isinstance(call.func, ast.Name)
        inside = any(call.lineno in lines for lines in safe)
        into_memory = bool(call.args) and getattr(call.args[0], "id", "") == "buffer"
        if inside or into_memory or (name_of_file, name) in ALLOWED or (plain and name in imported):
            continue
        if (name in WRITERS and not (plain and name not in imported and name == "save")) or (
            opens_for_writing(name, call) and name_of_file != "medmamba/disk/atomic.py"
        ):
            wrong.append(f"{name_of_file}:{call.lineno}: {name}")
    assert wrong == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_runs_code_from_files(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {a.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    plain = {n for n, call in calls(path) if isinstance(call.func, ast.Name) or n in ("extractall", "fileConfig")}
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle"
    }
    if used == {"UnpicklingError"}:  # the name of an error that others raise; it reads nothing
        names.discard("pickle")
    assert not (names | plain) & RUNS_CODE
    for name, call in calls(path):
        for keyword in call.keywords:
            value = getattr(keyword.value, "value", None)
            assert not (keyword.arg in ("shell", "allow_pickle") and value is True), (
                f"{path}:{call.lineno}: {keyword.arg}"
            )
        if name == "load" and isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "torch":
            assert any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in call.keywords), path
