"""The documentation is true: commands exist with their options, code runs, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib import import_module

import pytest
from command_page import commands_page
from doc_pages import KINDS, NOT_RUN, PAGES, ROOT, blocks_of, name_of, not_run
from typer.main import get_command

from medmamba.cli.main import app


def commands_of(path):
    """Every line of a page that calls medmamba, in blocks and in table cells, as words."""
    lines = [line for block in blocks_of(path, "sh", "text") for line in block.lines]
    lines += re.findall(r"`(medmamba [a-z][^`]*)`", path.read_text(encoding="utf-8"))
    for line in lines:
        if line.startswith("medmamba ") and "…" not in line and "COMMAND" not in line and "[OPTIONS]" not in line:
            yield shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_command_on_a_page_exists_with_its_options(path):
    group = get_command(app)
    for words in commands_of(path):
        known = {option for parameter in group.params for option in parameter.opts} | {"--help", "-h"}
        known |= {"--install-completion", "--show-completion"}
        command = group
        for word in words:
            if word.startswith("-") and " " not in word:
                if not word.lstrip("-").replace(".", "").isdigit():
                    assert word.partition("=")[0] in known, f"{path.name}: medmamba {' '.join(words)}: {word}"
            elif hasattr(command, "commands"):
                assert word in command.commands, f"{path.name}: medmamba {' '.join(words)}"
                command = command.commands[word]
                known |= {option for parameter in command.params for option in parameter.opts}


COMMAND = re.compile(r" *(\$ )?(medmamba|python|make|curl|torchrun|pip|cd|sbatch|bash) ")


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_block_is_run_by_a_test_or_is_no_code(path):
    for block in blocks_of(path):
        assert block.kind in KINDS, f"{name_of(path)}: a block of kind '{block.kind}'; known: {KINDS}"
        if block.kind == "text":
            commands = [line for line in block.lines if COMMAND.match(line) and not line.endswith("[OPTIONS]")]
            assert not commands, f"{name_of(path)}: commands stand in a block of kind sh, and are run: {commands}"
    indented = re.findall(r"\n\n {4}.*", path.read_text(encoding="utf-8"))
    assert not [line for line in indented if COMMAND.match(line.strip("\n"))], f"{name_of(path)}: use a fenced block"


def test_lines_that_are_not_run_name_what_exists():
    lines = [line for path in PAGES for block in blocks_of(path, "sh") for line in block.lines if not_run(line)]
    assert {start for start in NOT_RUN for line in lines if line.startswith(start)} == set(NOT_RUN), "one is not needed"
    for line in lines:
        words = line.split("#")[0].split()
        if words[0] == "make":
            subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, check=True)
        elif words[1] == "-m":
            assert (ROOT / words[-1]).is_dir(), line


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_to_files_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
            if path.is_relative_to(ROOT / "docs"):  # the site has no other files, and refuses links to them
                assert (path.parent / target).resolve().is_relative_to(ROOT / "docs"), f"{path.name}: {target}"
    for script in re.findall(r"benchmarks/\w+\.py", path.read_text(encoding="utf-8")):
        assert (ROOT / script).is_file(), f"{path.name}: {script}"


SOURCES = [
    f"/{path.relative_to(ROOT)}"
    for folder in ("medmamba", "kernels", "plans", "cli", "tests", "examples", "benchmarks")
    for path in (ROOT / folder).rglob("*.*")
]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_files_of_the_project_on_a_page_exist(path):
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:medmamba|plans|kernels|cli|tests|benchmarks|examples|docs)/[\w./-]*)", text):
        assert (ROOT / name).exists(), f"{path.name}: {name}"
    for name in set(re.findall(r"`([\w/]+\.(?:py|h|cpp))`", text)):  # relative to a folder that the page names
        assert any(source.endswith(f"/{name}") for source in SOURCES), f"{path.name}: {name}"


def test_the_page_of_commands_is_what_the_commands_say():
    page = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    assert page == commands_page(), "run: python tests/docs/command_page.py > docs/reference/commands.md"


def test_the_python_functions_of_the_commands_exist():
    """The list "All commands" of the page on Python."""
    page = (ROOT / "docs" / "how-to" / "use-from-python.md").read_text(encoding="utf-8")
    listed = re.findall(r"`(medmamba(?:\.\w+)*)\.(\w+)`", page.partition("## All commands")[2].partition("\n## ")[0])
    assert len(listed) > 15
    for module, function in listed:
        assert callable(getattr(import_module(module), function)), f"{module}.{function}"


def test_every_page_is_in_the_sites_contents_or_reached_from_one():
    contents = (ROOT / "mkdocs.yml").read_text()
    everything = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    for path in (ROOT / "docs").rglob("*.md"):
        name = str(path.relative_to(ROOT / "docs"))
        if not name.startswith("benchmarks/"):
            assert name in contents or path.name in everything, f"{name} is nowhere linked"


def test_names_of_the_python_reference_exist():
    from importlib import import_module

    for name in re.findall(r"^::: (\S+)", (ROOT / "docs/reference/python.md").read_text(), re.M):
        module, _, attribute = name.rpartition(".")
        found = getattr(import_module(module), attribute, None)
        assert found is not None or import_module(name)
        assert (found or import_module(name)).__doc__


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra 'docs'")
    pytest.importorskip("mkdocstrings", reason="needs the extra 'docs'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "site" / "reference" / "python.html").read_text()
    assert "from_bundle" in page
    index = (tmp_path / "site" / "index.html").read_text()
    assert not re.search(r'<(script|link)[^>]*(src|href)="https?:', index)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_path_of_the_repository_that_a_page_names_exists(path):
    tops = "tests|medmamba|plans|kernels|cli|benchmarks|examples|docs"
    named = re.findall(rf"`((?:{tops})/[\w./-]*)(?::\w+|::\w+)?`", path.read_text(encoding="utf-8"))
    assert [one for one in named if not (ROOT / one).exists()] == []
