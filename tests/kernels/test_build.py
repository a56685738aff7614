"""The compiled library: it builds where a compiler is, it is found, and reasons are reported."""

import multiprocessing
import tomllib
from pathlib import Path

import pytest

from medmamba.kernels import available_backends, backend_report, build, library

ROOT = Path(__file__).resolve().parents[2]


def extension():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (module,) = project["tool"]["setuptools"]["ext-modules"]
    return module


def test_installing_and_building_in_place_use_the_same_sources_and_flags():
    module = extension()
    assert module["name"] == "medmamba.kernels._cpu"
    assert module["sources"] == [f"kernels/csrc/{name}" for name in build.SOURCES]
    assert tuple(module["extra-compile-args"]) == build.COMPILE_FLAGS
    assert sorted(build.SOURCES) == sorted(path.name for path in (ROOT / "kernels" / "csrc").glob("*.cpp"))


@pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler on this machine")
def test_with_a_compiler_the_cpp_backend_runs():
    # An optional extension hides its compile errors; this is where they show.
    assert available_backends()[0] == "cpp", library.missing_reason()


@pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler on this machine")
def test_the_sources_compile_without_warnings(tmp_path):
    flags = ("-Wall", "-Wextra", "-Werror", "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-O0")
    # Sizes arrive in 64 bits; that none of them, and no product of them, is squeezed into 32 keeps offsets beyond 2^31
    # elements right without a test that would have to allocate them.
    flags += ("-Wconversion", "-Wno-sign-conversion", "-Wno-float-conversion")
    assert build.compile_library(tmp_path / "_cpu.so", flags).is_file()


@pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler on this machine")
def test_a_compile_error_is_shown_and_nothing_is_left_behind(tmp_path):
    with pytest.raises(RuntimeError, match=r"could not compile the CPU kernels:\n(.|\n)*no-such-option"):
        build.compile_library(tmp_path / "_cpu.so", ("-no-such-option",))
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_the_build_says_what_to_install(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"No C\+\+ compiler found. Install g\+\+"):
        build.compile_library()


def test_a_damaged_library_is_refused_with_its_path(monkeypatch, tmp_path):
    damaged = tmp_path / "_cpu.so"
    damaged.write_bytes(b"not a library")
    monkeypatch.setattr(library, "candidates", lambda: [damaged])
    library._load.cache_clear()
    try:
        assert str(damaged) in library.missing_reason()
        with pytest.raises(RuntimeError, match="The cpp backend cannot run: the compiled library cannot be used"):
            library.cpu_library()
        monkeypatch.setattr(library, "candidates", list)
        library._load.cache_clear()
        assert 'run "python -m medmamba.kernels.build"' in library.missing_reason()
        report = backend_report()
        assert report.cpu.chosen == "torch"
        assert "not found" in report.cpu.refused["cpp"]
    finally:
        library._load.cache_clear()


def test_the_library_is_also_looked_for_in_the_installed_package(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert any(path.parent == tmp_path / "medmamba" / "kernels" for path in library.candidates())


def test_the_report_names_the_backend_and_the_reasons():
    report = backend_report()
    assert report.cpu.device == "cpu"
    assert report.cpu.chosen == available_backends()[0]
    assert "reference" in report.cpu.refused
    assert report.cpu.chosen in str(report)


@pytest.mark.parametrize(("method", "forked"), [("fork", True), ("spawn", False)])
def test_only_forked_processes_do_without_the_threads_of_torch(method, forked):
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(library.in_forked_process) is forked
    assert not library.in_forked_process()


def test_the_report_lists_each_backend_that_can_be_named_and_says_where():
    text = str(backend_report().cpu)
    assert text.count("torch: available") + text.startswith("cpu: torch") == 1
    assert "reference: unavailable" not in text
    assert 'reference: a plain loop for tests, only from Python: backend="reference"' in text
    assert "  triton: unavailable (the Triton kernels run on CUDA" in text
