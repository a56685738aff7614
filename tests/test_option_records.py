"""Records of options: values as text, messages about bad ones, and recipe files."""

from __future__ import annotations

import json
from typing import Literal

import pytest

from medmamba.bundle.options import BundleCard, ExportOptions
from medmamba.command_options import (
    ConvertDatasetOptions,
    ConvertPlansOptions,
    ConvertWeightsOptions,
    DemoOptions,
    DicomSegOptions,
    ExplainOptions,
    FindBestOptions,
    InfoOptions,
    ReportOptions,
    ReproduceOptions,
    ServeOptions,
)
from medmamba.errors import ConfigError, InputError
from medmamba.evaluation.options import EvaluateOptions
from medmamba.inference.options import PredictOptions
from medmamba.options import Folds, Gigabytes, Integers, Names, NumbersByName, Options, option
from medmamba.plans.options import PlanRequest
from medmamba.recipe import read_recipe
from medmamba.training.config import TrainConfig
from medmamba.training.options import PretrainOptions, TrainOptions


class Example(Options):
    epochs: int | None = option(None, "Length in epochs.", ge=1)
    rate: float = option(0.1, "Rate.", gt=0)
    schedule: Literal["poly", "cosine"] = option("poly", "Schedule.")
    patch_size: Integers | None = option(None, "Patch size.")
    freeze: Names = option((), "Parts.")
    folds: Folds = option((0,), "Folds.", flag="--fold")
    weights: NumbersByName = option({}, "Weights.")
    memory_gb: Gigabytes = option(8.0, "Memory.", flag="--memory", gt=0)
    use_scan: bool = option(True, "Without scan.", flag="--no-scan")
    strict: bool = option(False, "Strict.")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("patch_size", "64,96,96", (64, 96, 96)),
        ("patch_size", "64x96", (64, 96)),
        ("patch_size", ["64,96", 32], (64, 96, 32)),
        ("freeze", "stem, encoder", ("stem", "encoder")),
        ("freeze", ["stem,encoder", "head"], ("stem", "encoder", "head")),
        ("folds", "0-2,all", (0, 1, 2, "all")),
        ("folds", 3, (3,)),
        ("weights", "tumour=3,liver=0.5", {"tumour": 3.0, "liver": 0.5}),
        ("memory_gb", "8192MB", 8.192),
        ("epochs", "7", 7),
    ],
)
def test_a_value_as_text_is_the_value(name, text, value):
    assert getattr(Example.of(**{name: text}), name) == value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "--epochs 0 must be at least 1."),
        ({"epochs": "ten"}, "--epochs 'ten' must be a whole number."),
        ({"epochs": True}, "--epochs 'True' must be a whole number."),
        ({"rate": 0}, "--rate 0 must be above 0."),
        ({"schedule": "polly"}, "--schedule 'polly' is none of: poly, cosine. Did you mean 'poly'?"),
        ({"patch_size": "64,b"}, "--patch-size '64,b' is not a list of numbers. Write for example 64,96,96."),
        ({"folds": "x"}, "--fold 'x' is neither a fold number nor 'all'. Write for example 0, 0,2 or 0-4."),
        ({"weights": {"liver": "x"}}, "--weights of 'liver' 'x' must be a number."),
        ({"weights": "liver"}, "--weights 'liver' has the part 'liver', which is not NAME=NUMBER."),
        ({"memory_gb": "6QB"}, "--memory '6QB' is not an amount of memory. Write for example 8GB."),
        ({"epoch": 3}, "Unknown option 'epoch'. Did you mean 'epochs'?"),
        ({"epochs": "\udcff"}, "--epochs '\\udcff' is not UTF-8 text."),
        ({"schedule": "\udcff"}, "--schedule '\\udcff' is not UTF-8 text."),
        ({"folds": ["0", "x"]}, "--fold '0', 'x' is neither a fold number nor 'all'."),
    ],
)
def test_a_bad_value_is_one_line(values, message):
    with pytest.raises(ConfigError) as error:
        Example.of(**values)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_every_bad_value_is_reported_in_the_order_of_the_record():
    with pytest.raises(ConfigError) as error:
        Example.of(schedule="x", epochs=-1)
    assert [line.split()[0] for line in str(error.value).splitlines()] == ["--epochs", "--schedule"]


def test_changes_keep_what_was_given_and_nothing_else():
    record = Example.of(Example(epochs=3), rate=1.0)
    assert record.given == {"epochs": 3, "rate": 1.0}


def test_a_switch_that_is_on_has_an_option_to_turn_it_off():
    class Switch(Options):
        mirror: bool = option(True, "No mirroring.")

    assert Switch.flag("mirror") == "--no-mirror"
    assert Example.flag("use_scan") == "--no-scan"


def test_a_recipe_is_the_record(tmp_path):
    values = {"epochs": 3, "patch_size": [64, 96, 96], "weights": {"tumour": 3}, "use_scan": False, "folds": "0-2"}
    (tmp_path / "r.json").write_text(json.dumps(values))
    (tmp_path / "r.yaml").write_text(
        "epochs: 3\npatch_size: [64, 96, 96]\nweights: {tumour: 3}\nuse_scan: no\nfolds: 0-2\n"
    )
    assert (
        read_recipe(tmp_path / "r.json", Example) == read_recipe(tmp_path / "r.yaml", Example) == Example.of(**values)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3\n", "unknown key 'epoch'. Did you mean 'epochs'?"),
        ("use-scan: false\n", "unknown key 'use-scan'. Did you mean 'use_scan'?"),
        ("epochs: ten\n", "epochs 'ten' must be a whole number."),
        ("epochs: yes\n", "epochs 'True' must be a whole number."),
        ("epochs: 3\nepochs: 4\n", "the key 'epochs' occurs twice, again in line 2. Keep one."),
        ("weights: {a: 1, a: 2}\n", "the key 'a' occurs twice"),
        ("- epochs\n", "is a list, not a table of options."),
        ("", "is empty, not a table of options."),
        ("epochs: [\n", "not a recipe: "),
        ("epochs: !!python/object/apply:os.getcwd []\n", "not a recipe: could not determine a constructor"),
    ],
)
def test_a_bad_recipe_is_one_line_with_the_file(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_recipe(path, Example)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


def test_a_recipe_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read as a recipe \(No such file"):
        read_recipe(tmp_path / "none.yaml", Example)
    (tmp_path / "latin.yaml").write_bytes(b"network: \xe4\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_recipe(tmp_path / "latin.yaml", Example)
    (tmp_path / "twice.json").write_text('{"epochs": 3, "epochs": 4}')
    with pytest.raises(ConfigError, match="'epochs' occurs twice"):
        read_recipe(tmp_path / "twice.json", Example)
    (tmp_path / "broken.json").write_text('{"epochs": 3')
    with pytest.raises(ConfigError, match="line 1, column"):
        read_recipe(tmp_path / "broken.json", Example)


LAUGHS = "a0: &a0 [l, l]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.yaml", LAUGHS, "an alias repeats the value of line 1. Write the value out instead."),
        ("r.yaml", "epochs: &a [*a]\n", "an alias repeats the value of line 1."),
        ("r.yaml", "epochs: 0x" + "f" * 5000, "epochs ... "),
        ("r.yaml", "epochs: " + "9" * 5000, "not a recipe: a value cannot be read (Exceeds the limit"),
        ("r.json", '{"epochs": ' + "9" * 5000 + "}", "not a recipe: a value cannot be read (Exceeds the limit"),
        ("r.yaml", "epochs: 2020-13-45\n", "not a recipe: a value cannot be read (month must be"),
        ("r.yaml", "epochs: !!timestamp x\n", "not a recipe: a value cannot be read"),
        ("r.yaml", "epochs: !!bool x\n", "not a recipe: a value cannot be read"),
        ("r.yaml", "#" + "é" * 40000, "larger than 64 KiB, so it is no recipe."),
        ("r.json", "{" + ", ".join(f'"k{n}": 1' for n in range(6000)) + "}", "larger than 64 KiB"),
        ("r.json", "{" + ", ".join(f'"k{n}": 1' for n in range(5000)) + "}", "unknown key 'k0'."),
        ("r.yaml", "k" * 1000 + ": 1\n", "unknown key 'kkk"),
        ("r.yaml", "rate: .inf\n", "rate inf must be a finite number."),
        ("r.yaml", "weights: {a: yes}\n", "weights of 'a' 'True' must be a number."),
        ("r.yaml", "patch_size: [yes, 64]\n", "patch_size 'True', 64 is not a list of numbers."),
        ("r.yaml", "patch_size: []\n", "patch_size [] is empty."),
        ("r.yaml", "folds: []\n", "folds [] is empty."),
        ("r.yaml", "folds: {a: 1}\n", "folds {'a': 1} is a table"),
        ("r.yaml", "folds: 0-99999999999\n", "folds '0-99999999999' has a fold above 999."),
        ("r.yaml", "folds: ²\n", "folds '²' is neither a fold number nor 'all'."),
        ("r.yaml", "weights: 5\n", "weights 5 has the part 5, which is not NAME=NUMBER."),
    ],
)
def test_a_recipe_made_to_break_is_one_short_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        read_recipe(tmp_path / name, Example)
    assert str(error.value).startswith(f"{tmp_path / name}: {message}")
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)


ODD = [
    {"a": {"b": 1}},
    [],
    [[0]],
    [None],
    [1, 2.5],
    None,
    True,
    -1,
    10**5000,
    float("nan"),
    "",
    "-",
    "²",
    "1/0",
    {1: 2},
]
RECORDS = (
    *(DemoOptions, ExplainOptions, InfoOptions, ReproduceOptions, DicomSegOptions, ConvertDatasetOptions),
    *(ConvertPlansOptions, ConvertWeightsOptions, EvaluateOptions, PredictOptions, ServeOptions, BundleCard),
    *(ExportOptions, FindBestOptions, PlanRequest, TrainConfig, TrainOptions, PretrainOptions, ReportOptions),
)


@pytest.mark.parametrize("record", RECORDS)
def test_every_field_of_every_verb_takes_an_odd_value_or_refuses_it_in_one_line(record):
    for name in record.model_fields:
        for value in ODD:
            try:
                record.checked({name: value})
            except InputError as error:
                lines = [line for line in str(error).splitlines() if "is missing" not in line]
                assert all(len(line) < 500 for line in lines)


def test_a_run_is_not_resumed_and_deleted_at_once():
    for record in (TrainOptions, PretrainOptions):
        with pytest.raises(ConfigError, match=r"--restart True must not be given with --resume"):
            record.of(resume=True, restart=True)


@pytest.mark.parametrize("size", ["0,0,0", "-1,8,8", "8"])
def test_a_patch_size_for_prediction_is_checked_as_that_of_a_plan(size):
    for record in (PredictOptions, PlanRequest):
        with pytest.raises(ConfigError, match=r"--patch-size .* must be 2 or 3 numbers of voxels of at least 1"):
            record.of(patch_size=size)


def test_labels_of_a_recipe_are_checked_as_those_of_the_command_line():
    assert DicomSegOptions.of(labels={"background": 0, "liver": 1}) == DicomSegOptions.of(labels="liver=1")
    for value in ({"liver": 0}, {"liver": True}, 5, [5]):
        with pytest.raises(ConfigError, match="not NAME=VALUE"):
            DicomSegOptions.of(labels=value)


@pytest.mark.parametrize(
    ("key", "meant"),
    [("lr", "learning_rate"), ("rate", "learning_rate"), ("learning-rate", "learning_rate"), ("batch", "batch_size")],
)
def test_an_unknown_key_names_the_option_that_was_meant(tmp_path, key, meant):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{key}: 1\n")
    with pytest.raises(ConfigError, match=f"unknown key '{key}'. Did you mean '{meant}'"):
        read_recipe(path, TrainConfig)


@pytest.mark.parametrize("key", ["no_mirror", "on", "1", "window", "banana"])
def test_an_unknown_key_that_is_like_no_option_names_the_rule_and_no_option(tmp_path, key):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{key}: 1\n")
    with pytest.raises(
        ConfigError, match="A key is an option's name with _ for -; --no-mirror is mirror: false"
    ) as error:
        read_recipe(path, TrainConfig)
    assert "Did you mean" not in str(error.value)


TEXTS = [
    (record, name)
    for record in (BundleCard, ServeOptions, DemoOptions, TrainOptions, TrainConfig, PlanRequest, DicomSegOptions)
    for name, field in record.model_fields.items()
    if field.annotation in (str, str | None)
]


@pytest.mark.parametrize(("record", "name"), TEXTS)
def test_bytes_that_are_no_text_are_refused_by_every_option_that_is_text(record, name):
    needed = {"licence": "MIT", "intended_use": "none"} if record is BundleCard else {}
    with pytest.raises(ConfigError, match=rf"^{record.flag(name)} 'a \\udcff' is not UTF-8 text\. Write it"):
        record.of(**{**needed, name: "a \udcff"})


def test_texts_of_a_list_are_texts_too():
    with pytest.raises(ConfigError, match="--reference 'a', '\\\\udcff' is not UTF-8 text"):
        BundleCard.of(licence="MIT", intended_use="none", references=["a", "\udcff"])
