"""Two commands on one run folder: each pair is allowed, or the second is refused in one line that names the first.

The second is started in the middle of the first, in the same process: locks belong to open files, not to processes.
The table is that of docs/how-to/train.md.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from pathlib import Path

import pytest
from tiny_models import make_fold

import medmamba
from medmamba import pipeline
from medmamba.bundle.options import BundleCard
from medmamba.errors import InputError
from medmamba.evaluation.run import run_evaluation
from medmamba.inference.predictor import Predictor
from medmamba.model_selection.run import find_best
from medmamba.models.run_folder import RunFolder
from medmamba.run_report.write import write_report
from medmamba.training.config import TrainConfig
from medmamba.training.pretrain import pretrain

REFUSED = {
    "plan": {"plan", "train", "pretrain", "find-best", "report"},
    "train": {"plan", "train", "find-best"},
    "pretrain": {"plan", "pretrain"},
    "find-best": {"plan", "train", "find-best"},
    "report": {"plan", "report"},
    "predict": {"predict", "evaluate"},
    "evaluate": {"predict"},
    "export": set(),
    "serve": set(),
}
"""For each running command, those that are refused meanwhile: on the same fold, or on the same output."""
QUICK = [name for name in REFUSED if name != "export"]
ROOT = Path(__file__).resolve().parents[2]


class Commands:
    """Each command on one run folder; ``meanwhile`` is called once in its middle."""

    def __init__(self, run: Path, dataset: Path) -> None:
        self.run, self.dataset = run, dataset
        self.steps = itertools.count(2)
        self.masks = run.parent / "masks"

    def start(self, name, meanwhile=lambda: None):
        waiting = [meanwhile]

        def middle(*event):
            if waiting and event[0] != "measure":
                waiting.pop()()

        getattr(self, name.replace("-", "_"))(middle)
        assert not waiting

    def plan(self, middle):
        medmamba.plan(self.dataset, self.run, patch_size=(16, 24, 16), batch_size=2, on_item=middle)

    def train(self, middle):
        config = TrainConfig(steps=next(self.steps), steps_per_epoch=100, workers=0, validation_cases=1)
        pipeline.train(self.run, fold=1, resume=True, config=config, on_step=middle)

    def pretrain(self, middle):
        pretrain(self.run, restart=True, config=TrainConfig(steps=1, workers=0), on_step=middle)

    def predict(self, middle):
        pipeline.predict(self.run, self.dataset / "imagesTs", self.masks, folds=[0], mirror=False, on_item=middle)

    def find_best(self, middle):
        find_best(self.run, mirror=False, on_item=middle)

    def report(self, middle):
        write_report(self.run, device="cpu", on_item=middle)

    def evaluate(self, middle):
        run_evaluation(self.masks, self.dataset / "labelsTs", on_item=middle)

    def serve(self, middle):
        from medmamba.command_options import ServeOptions
        from medmamba.serving.routes import Service

        Service([Predictor(self.run, ServeOptions(folds=(0,), mirror=False).of_predictor("cpu"))])
        middle("serve")

    def export(self, middle):
        from medmamba.bundle.write import export_bundle

        middle("export")
        fold = RunFolder(self.run).fold("3d_fullres", 0)
        images, card = self.dataset / "imagesTs", BundleCard(licence="Apache-2.0", intended_use="tests")
        export_bundle(fold, self.run.parent / "bundle", card, images, most_cases=1)


@pytest.fixture(scope="module")
def commands(small_run, small_dataset, tmp_path_factory):
    """A planned run with fold 0 trained and fold 1 begun, and masks of it."""
    run = Path(shutil.copytree(small_run, tmp_path_factory.mktemp("pairs") / "run"))
    shutil.rmtree(run / "models", ignore_errors=True)
    make_fold(run / "models" / "3d_fullres" / "fold_0", RunFolder(run).read_plan(), 0)
    pipeline.train(run, fold=1, config=TrainConfig(steps=1, steps_per_epoch=100, workers=0, validation_cases=1))
    commands = Commands(run, small_dataset)
    commands.start("predict")
    return commands


def _try(commands, name):
    """None when it is allowed, else the line that refuses it."""
    try:
        commands.start(name)
    except InputError as error:
        return str(error)
    return None


def _check(commands, first, seconds):
    found = {}
    commands.start(first, lambda: found.update({name: _try(commands, name) for name in seconds}))
    assert {name for name, line in found.items() if line is not None} == REFUSED[first] & set(seconds), found
    for line in filter(None, found.values()):
        assert re.fullmatch(rf"\S+ is in use by process {os.getpid()} on '.+'\. Wait until .+", line)


@pytest.mark.parametrize("first", QUICK)
def test_a_second_command_is_allowed_or_refused_in_one_line(commands, first):
    _check(commands, first, [*REFUSED[first], "evaluate"])


@pytest.mark.slow
@pytest.mark.parametrize("first", REFUSED)
def test_every_pair_is_as_the_table_says(commands, first):
    _check(commands, first, REFUSED)


def test_the_table_of_the_documentation_is_this_one():
    text = (ROOT / "docs" / "how-to" / "train.md").read_text()
    for first, refused in REFUSED.items():
        listed = ", ".join(f"`{name}`" for name in REFUSED if name in refused) or "none"
        assert f"| `{first}` | {listed} |" in text


def test_a_plan_whose_cases_are_exchanged_is_no_missing_plan(tmp_path):
    (tmp_path / "plan.before.json").write_text("{}")
    with pytest.raises(InputError, match="`medmamba plan` is replacing its cases"):
        RunFolder(tmp_path).read_plan()


def test_who_read_the_plan_before_it_was_exchanged_is_refused(commands):
    plan = RunFolder(commands.run).read_plan()
    with pytest.raises(InputError, match="planned again in the meantime"):
        RunFolder(commands.run).check_unchanged(plan.model_copy(update={"dataset_name": "other"}))
