"""The options of prediction are one record for text of the command line and values of Python."""

from __future__ import annotations

import subprocess
import sys

import pytest

from medmamba.errors import ConfigError
from medmamba.inference.options import PredictOptions, PredictorOptions


def test_text_of_the_command_line_and_values_of_python_make_the_same_record():
    text = PredictOptions(patch_size="96,64,32", part="2/4", folds=["0", "all"], configuration="2d")
    values = PredictOptions(patch_size=(96, 64, 32), part=(2, 4), folds=(0, "all"), configuration=["2d"])
    assert text == values


def test_the_options_of_a_model_are_a_part_of_those_of_predict():
    assert PredictorOptions.of(PredictOptions(fast=True, resume=True)).given == {"fast": True}


@pytest.mark.parametrize("part", ["5/4", "0/4", "half", "1/2/3", (3, 2)])
def test_a_part_that_is_none_is_refused_with_an_example(part):
    with pytest.raises(ConfigError, match=r"--part .* is not a part of several\. Write for example 2/4\."):
        PredictOptions.of(part=part)


def test_records_of_options_load_no_torch():
    modules = "command_options", "inference.options", "evaluation.options", "bundle.options", "plans.options"
    modules += "training.options", "training.config"
    code = "import sys; " + "".join(f"import medmamba.{name}; " for name in modules)
    subprocess.run([sys.executable, "-c", f"{code} assert not {{'torch', 'numpy'}} & set(sys.modules)"], check=True)
