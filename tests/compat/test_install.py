"""The answers are installed only when asked for, refuse to hide an original, and say what they do and do not answer."""

import importlib
import subprocess
import sys

import pytest
import torch

from medmamba import compat
from medmamba.compat.__main__ import main
from medmamba.compat.install import ANSWERS, PACKAGES, VERSIONS
from medmamba.errors import ConfigError, InputError

SCRIPT = """
import sys
import mamba_ssm, torch
from mamba_ssm import Mamba
print(Mamba.__module__, sys.argv, __name__, torch.ones(2, device="cuda").cuda().device.type)
Mamba(8).cuda()(torch.rand(1, 5, 8).to("cuda:0"))
torch.cuda.synchronize()
"""


def test_nothing_is_answered_before_install_and_after_uninstall(capsys):
    assert importlib.util.find_spec("mamba_ssm") is None
    compat.install()
    assert capsys.readouterr().err == f"medmamba.compat answers for {', '.join(PACKAGES)}.\n"
    compat.install()
    assert capsys.readouterr().err == ""
    assert sys.modules["mamba_ssm"].__version__ == VERSIONS["mamba_ssm"]
    compat.uninstall()
    assert importlib.util.find_spec("mamba_ssm") is None
    assert not {name for name in sys.modules if name.partition(".")[0] in PACKAGES}


@pytest.mark.parametrize("module", ANSWERS)
def test_every_listed_module_has_every_listed_name(answers, module):
    found = importlib.import_module(module)
    for name in ANSWERS[module]:
        assert getattr(found, name).__doc__, f"{module}.{name}"


def test_what_is_not_answered_is_said(answers):
    with pytest.raises(ImportError, match=r"cannot import name 'Mamba9' from 'mamba_ssm' \(<medmamba.compat>\)"):
        from mamba_ssm import Mamba9  # noqa: F401
    with pytest.raises(
        ModuleNotFoundError, match=r"medmamba.compat has no mamba_ssm.ops.tilelang; docs/reference/compat"
    ):
        importlib.import_module("mamba_ssm.ops.tilelang")


def test_csm_triton_is_answered_inside_any_package(answers, tmp_path, monkeypatch):
    package = tmp_path / "models_of_a_clone"
    package.mkdir()
    (package / "__init__.py").write_text("from .csm_triton import cross_scan_fn\n")
    (package / "csm_triton.py").write_text("raise SystemExit('the file of the clone ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    clone = importlib.import_module("models_of_a_clone")
    assert clone.cross_scan_fn.__module__ == "medmamba.compat.cross_scan"
    for name in ("models_of_a_clone", "models_of_a_clone.csm_triton"):
        del sys.modules[name]


def test_an_installed_original_is_left_alone_unless_told(tmp_path, monkeypatch, capsys):
    original = tmp_path / "causal_conv1d.py"
    original.write_text("causal_conv1d_fn = 'the original'\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as refused:
        compat.install()
    assert str(refused.value) == (
        f"causal_conv1d is installed ({original}): medmamba.compat leaves it alone. To use medmamba's operators in its "
        "place: install(replace=True), or --replace on the command line."
    )
    assert importlib.import_module("causal_conv1d").causal_conv1d_fn == "the original"
    compat.install(replace=True)
    try:
        assert callable(importlib.import_module("causal_conv1d").causal_conv1d_fn)
    finally:
        compat.uninstall()
    assert importlib.import_module("causal_conv1d").causal_conv1d_fn == "the original"
    del sys.modules["causal_conv1d"]


def test_the_report_lists_what_was_called_and_on_which_backend(answers):
    from mamba_ssm import Mamba, Mamba2

    assert answers.report() == "medmamba.compat: nothing was called."
    Mamba(8)(torch.rand(1, 5, 8))
    Mamba2(8, headdim=8, rmsnorm=False)(torch.rand(1, 5, 8).double().float())
    lines = answers.report().splitlines()
    assert lines[0] == "medmamba.compat was called for:"
    backend = "cpp" if "cpp" in importlib.import_module("medmamba.kernels").available_backends() else "torch"
    assert f"  mamba_inner_fn: {backend} on cpu, 1x" in lines
    assert "  mamba_chunk_scan_combined: torch on cpu, 1x" in lines
    assert "  causal_conv1d_fn: torch operations on cpu, 2x" in lines


def test_a_script_runs_as_if_the_packages_were_installed(tmp_path):
    script = tmp_path / "predict.py"
    script.write_text(SCRIPT)
    words = [sys.executable, "-m", "medmamba.compat", "--cuda-as-cpu", "--report", str(script), "--epochs", "3"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"medmamba.compat.mamba ['{script}', '--epochs', '3'] __main__ cpu\n"
    assert done.stderr.startswith("medmamba.compat answers for mamba_ssm,")
    assert "  mamba_inner_fn: " in done.stderr


def test_what_is_no_script_is_said(tmp_path):
    with pytest.raises(InputError, match=r"train\.py is no file: name the Python script to run"):
        main([str(tmp_path / "train.py")])


def test_names_for_language_models_say_no(answers):
    from mamba_ssm.utils.generation import GenerationMixin
    from mamba_ssm.utils.hf import load_config_hf

    with pytest.raises(NotImplementedError, match="generates no text"):
        GenerationMixin().generate()
    with pytest.raises(NotImplementedError, match="downloads nothing"):
        load_config_hf("name")
