"""Records of options: text as on the command line, other values checked again, faults in one line each."""

from __future__ import annotations

import subprocess
import sys

import pytest

from medmamba.errors import ConfigError, InputError
from medmamba.inference.options import PredictOptions
from medmamba.options import flag_of, with_changes


def test_text_of_the_command_line_and_values_of_python_make_the_same_record():
    text = PredictOptions(patch_size="96,64,32", part="2/4", folds=["0", "all"], configuration="2d")
    values = PredictOptions(patch_size=(96, 64, 32), part=(2, 4), folds=(0, "all"), configuration=["2d"])
    assert text == values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile_batch": 0}, r"^--tile-batch 0: input should be greater than or equal to 1\.$"),
        ({"memory_gib": -1}, r"^--memory -1: "),
        ({"precision": "bf17"}, r"Unknown precision 'bf17'\. Did you mean 'bf16'"),
        ({"tilebatch": 2}, r"Unknown option 'tilebatch'\. Did you mean 'tile_batch'"),
    ],
)
def test_a_wrong_value_is_one_line_with_option_and_value(changes, message):
    with pytest.raises(ConfigError, match=message):
        with_changes(PredictOptions(), changes)


def test_a_part_that_is_none_is_refused_with_an_example():
    with pytest.raises(InputError, match=r"--part '5/4' is not a part\. Write for example --part 2/4"):
        with_changes(PredictOptions(), {"part": "5/4"})


def test_changes_keep_what_was_chosen_before():
    before = PredictOptions(fast=True, device="cpu")
    after = with_changes(before, {"device": "cuda"})
    assert (after.fast, after.device, before.device) == (True, "cuda", "cpu")


def test_a_field_may_have_another_name_on_the_command_line():
    assert flag_of(PredictOptions, "mirror") == "--no-mirror"
    assert flag_of(PredictOptions, "tile_batch") == "--tile-batch"


def test_records_of_options_load_no_torch():
    modules = "inference", "model_selection", "evaluation", "serving", "run_report"
    code = "import sys; " + "".join(f"import medmamba.{name}.options; " for name in modules)
    subprocess.run([sys.executable, "-c", f"{code} assert not {{'torch', 'numpy'}} & set(sys.modules)"], check=True)
