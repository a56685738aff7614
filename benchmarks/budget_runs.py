"""Trainings of ours and of nnU-Net for the same time, one JSON line for every run.

A dataset is prepared once: a fifth of its cases (whole patients where there are several images of one) is held out
before anything is planned. A queue is a list of runs:

    {"name": "vm_unet N=16", "network": "vm_unet", "seconds": 180, "seed": 1,
     "arguments": {"state_size": 16}, "recipe": {"learning_rate": 0.002}, "patch_size": [...], "configuration": "2d"}
    {"name": "nnU-Net", "nnunet": "3d_fullres", "batch_size": 2, "seconds": 180, "seed": 1}

``arguments`` replace those that the plan gives the network, ``recipe`` those of the training. Each run is one thread,
in process; its number of steps is its seconds divided by the processor seconds of a step, data included (cpu_clock.py),
or ``steps``: where a load comes and goes, the ten steps that are measured err by up to half; ``cpu_seconds`` tells.
With ``"clock": "wall"`` the seconds are those on the wall, and each side uses every core and workers for its data.
Runs that the file of results already holds are left out, so that a queue can be stopped, extended and taken up again:

    python benchmarks/budget_runs.py prepare DATASET FOLDER [--group-by REGEX] [--nnunet-python VENV/bin/python]
    python benchmarks/budget_runs.py run FOLDER QUEUE.json -o RUNS.jsonl [--nnunet-python VENV/bin/python]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
from cpu_clock import quiet_step_seconds

from medmamba import pipeline
from medmamba.compute.device import choose_device
from medmamba.datasets import DatasetSpec, convert_dataset, read_dataset
from medmamba.disk.atomic import write_json
from medmamba.models.network import mirroring_of, network_arguments
from medmamba.models.output_channels import OutputChannels
from medmamba.models.run_folder import RunFolder
from medmamba.models.trained_folds import ModelFacts
from medmamba.networks.build import build_network
from medmamba.plans.folds import groups_by_pattern
from medmamba.plans.schema import Configuration, Plan
from medmamba.preprocessing.store import CaseReader, stored_cases
from medmamba.training.augmentation import augmentation_plan
from medmamba.training.batches import PatchRecipe, PatchSource
from medmamba.training.config import TrainConfig
from medmamba.training.epochs import FoldSetup
from medmamba.training.loss_names import find_loss
from medmamba.training.losses import DeepSupervision, SegmentationLoss
from medmamba.training.machine import resolved
from medmamba.training.observers import Observer
from medmamba.training.step import Stepper, make_optimizer
from medmamba.training.trainer import Training

HELD_OUT_SHARE = 0.2
SPLIT_SEED = 20
DATASET_ID = 901
NNUNET = Path(__file__).with_name("nnunet_timed.py")


def prepare(
    dataset: Path,
    folder: Path,
    pattern: str | None = None,
    nnunet_python: str | None = None,
    configurations: Sequence[str] | None = None,
) -> list[str]:
    """Hold cases out, then plan and preprocess the rest, with nnU-Net too if its Python is given."""
    test = held_out(read_dataset(dataset), pattern)
    split_dataset(dataset, folder, test)
    pipeline.plan(
        folder / "nnUNet_raw" / f"Dataset{DATASET_ID}_benchmark", folder / "run", configurations=configurations
    )
    if nnunet_python:
        call_nnunet(folder, nnunet_python, "prepare")
    return test


def held_out(spec: DatasetSpec, pattern: str | None, seed: int = SPLIT_SEED) -> list[str]:
    """Ids of a fifth of the training cases; cases of one group stay together."""
    ids = sorted(case.case_id for case in spec.cases)
    groups = groups_by_pattern(ids, pattern) if pattern else {name: name for name in ids}
    names = sorted(set(groups.values()))
    count = max(1, round(HELD_OUT_SHARE * len(names)))
    chosen = set(np.random.default_rng(seed).choice(names, count, replace=False).tolist())
    return [name for name in ids if groups[name] in chosen]


def split_dataset(dataset: Path, folder: Path, test: Sequence[str]) -> None:
    """nnU-Net's layout with the held-out cases apart: training in nnUNet_raw, test images and truths beside."""
    raw = folder / "nnUNet_raw" / f"Dataset{DATASET_ID}_benchmark"
    convert_dataset(dataset, raw, "nnunet")
    for name in ("test_images", "test_truths"):
        (folder / name).mkdir(parents=True)
    for case_id in test:
        for path in sorted((raw / "imagesTr").glob(f"{case_id}_[0-9][0-9][0-9][0-9].*")):
            shutil.move(path, folder / "test_images" / path.name)
        for path in sorted((raw / "labelsTr").glob(f"{case_id}.*")):
            shutil.move(path, folder / "test_truths" / path.name)
    facts = json.loads((raw / "dataset.json").read_text())
    facts["numTraining"] -= len(test)
    write_json(raw / "dataset.json", facts)


def run_nnunet(folder: Path, python: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Train nnU-Net in its own environment, predict the held-out cases with it, score them."""
    results = folder / "nnunet" / f"{wanted['nnunet']}_{wanted['seed']}_{wanted['seconds']}_{clock(wanted)}"
    masks = results / "masks"
    extra = [str(wanted["batch_size"])] if "batch_size" in wanted else []
    numbers = [clock(wanted), str(wanted["seconds"]), str(wanted["seed"]), *extra]
    printed = call_nnunet(folder, python, "train", wanted["nnunet"], *numbers, results=results)
    facts = json.loads(printed.strip().splitlines()[-1])
    call_nnunet(folder, python, "predict", wanted["nnunet"], str(folder / "test_images"), str(masks), results=results)
    return {**wanted, **facts, **score(masks, folder)}


def call_nnunet(folder: Path, python: str, verb: str, *arguments: str, results: Path | None = None) -> str:
    """Run nnunet_timed.py with nnU-Net's Python; models go to ``results``. Returns what it printed."""
    folders = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
    folders["nnUNet_results"] = str(results or folder / "nnUNet_results")
    command = [python, str(NNUNET), verb, str(DATASET_ID), *arguments]
    own = {"nnUNet_compile": "false", "PYTHONPATH": ""}
    if "wall" not in arguments:
        # Augmentation belongs into the timed process; planning refuses a number of zero.
        own |= {"nnUNet_n_proc_DA": "1" if verb == "prepare" else "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env={**os.environ, **folders, **own}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"nnU-Net failed ({verb}):\n{done.stderr[-3000:]}")
    return done.stdout


def score(masks: Path, folder: Path) -> dict[str, Any]:
    """Mean foreground Dice of the held-out cases, and that of every one, on the images' own grids."""
    evaluation = pipeline.evaluate(masks, folder / "test_truths", output=masks)
    return {"dice": evaluation.mean_foreground, "cases": evaluation.mean_per_case()}


def run_ours(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Train, predict the held-out cases, score them."""
    run = RunFolder(folder / "run")
    plan = run.read_plan()
    configuration = plan.configurations[wanted.get("configuration", plan.default_configuration)]
    if "patch_size" in wanted:
        configuration = configuration.model_copy(update={"patch_size": wanted["patch_size"]})
    cases = list(stored_cases(run.preprocessed(configuration.name)).values())
    arguments = network_arguments(plan, configuration, network=wanted["network"], use_scan=wanted.get("scan", True))
    arguments |= wanted.get("arguments", {})
    recipe = TrainConfig(**{"seed": wanted["seed"], **wanted.get("recipe", {})})
    if clock(wanted) == "wall":
        torch.set_num_threads(os.cpu_count() or 1)
        length = {"max_minutes": wanted["seconds"] / 60}
    else:
        torch.set_num_threads(1)
        recipe = recipe.model_copy(update={"workers": 0})
        steps = wanted.get("steps") or wanted["seconds"] / step_cost(plan, configuration, cases, arguments, recipe)
        length = {"steps": max(1, round(steps))}
    recipe = recipe.model_copy(update=length)

    name = "".join(c if c.isalnum() else "_" for c in "_".join(str(part) for part in key(wanted)))
    target = folder / "ablation" / name
    target.mkdir(parents=True, exist_ok=True)
    facts = ModelFacts(plan.hash(), configuration.name, arguments, "all")
    (target / "plan.json").write_text(plan.to_json())
    (target / "model.json").write_text(json.dumps(facts.as_json()))
    torch.manual_seed(recipe.seed)
    network = build_network(**arguments)
    recipe = resolved(recipe, network, choose_device(recipe.device), cascade=configuration.previous_stage is not None)
    parameters = sum(p.numel() for p in network.parameters())
    started, cpu = time.monotonic(), time.process_time()
    setup = FoldSetup(plan, configuration, cases, [], target, recipe, facts, find_loss(recipe.loss))
    result = Training(network, setup, Observer()).run()
    spent, wall = time.process_time() - cpu, time.monotonic() - started
    masks = target / "masks"
    cpu = time.process_time()
    choices = {"patch_size": wanted["patch_size"]} if "patch_size" in wanted else {}
    pipeline.predict(target, folder / "test_images", masks, mirror=wanted.get("mirror", True), **choices)
    predicted = time.process_time() - cpu
    return {
        **wanted,
        **score(masks, folder),
        "steps": result.steps,
        "parameters": parameters,
        "cpu_seconds": spent,
        "wall_seconds": wall,
        "predict_seconds": predicted,
        "final_loss": result.final_loss,
        "batch_size": recipe.batch_size or configuration.batch_size,
        "network_arguments": arguments,
    }


def step_cost(
    plan: Plan, configuration: Configuration, cases: list[CaseReader], arguments: dict[str, Any], recipe: TrainConfig
) -> float:
    """Processor seconds of a step with its batch, on a network that is thrown away."""
    heads, mirroring = OutputChannels.of_plan(plan), mirroring_of(plan, configuration)
    augmentation = augmentation_plan(tuple(configuration.patch_size), mirroring)
    batch = recipe.batch_size or configuration.batch_size
    source = PatchSource(cases, PatchRecipe(augmentation, batch, recipe.seed, channels=heads))
    network = build_network(**arguments)
    loss = DeepSupervision(SegmentationLoss(heads, find_loss(recipe.loss), batch_dice=configuration.batch_dice))
    stepper = Stepper(network, make_optimizer(network, recipe), loss, heads, recipe)
    return quiet_step_seconds(lambda index: stepper.step(source.finished(source.batch(index)), 1e-4))


def key(run: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a run of a queue the same as a finished one."""
    return run["name"], run["seed"], run["seconds"], clock(run)


def clock(run: dict[str, Any]) -> str:
    """By which clock a run's seconds are counted: "cpu" or "wall"."""
    return run.get("clock", "cpu")


def run_queue(folder: Path, queue: Path, output: Path, nnunet_python: str | None = None) -> None:
    """Run what is not done yet, in the order of the queue, which is read again after every run."""
    blosc2.set_nthreads(1)
    while True:
        done = {key(run) for run in read_runs(output)}
        waiting = [run for run in json.loads(queue.read_text()) if key(run) not in done]
        if not waiting:
            return
        wanted = waiting[0]
        try:
            if "nnunet" in wanted:
                assert nnunet_python is not None, "--nnunet-python is missing"
                found = run_nnunet(folder, nnunet_python, wanted)
            else:
                found = run_ours(folder, wanted)
        except (Exception, SystemExit) as error:  # one bad line must not cost the whole queue
            found = {**wanted, "error": f"{type(error).__name__}: {error}"}
        with output.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(found["name"], found["seed"], found.get("steps"), found.get("dice", found.get("error")), flush=True)


def read_runs(output: Path) -> list[dict[str, Any]]:
    """The finished runs of a file of results."""
    return [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []


def main() -> None:
    """The two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    first = verbs.add_parser("prepare")
    first.add_argument("dataset", type=Path)
    first.add_argument("folder", type=Path)
    first.add_argument("--group-by", help="regular expression for the patient in a case id")
    first.add_argument("--nnunet-python")
    first.add_argument("--configurations", nargs="+", help="ours, to be stored; the plan's default one without it")
    then = verbs.add_parser("run")
    then.add_argument("folder", type=Path)
    then.add_argument("queue", type=Path)
    then.add_argument("-o", "--output", type=Path, required=True)
    then.add_argument("--nnunet-python")
    choices = parser.parse_args()
    if choices.verb == "prepare":
        prepare(choices.dataset, choices.folder, choices.group_by, choices.nnunet_python, choices.configurations)
    else:
        run_queue(choices.folder, choices.queue, choices.output, choices.nnunet_python)


if __name__ == "__main__":
    main()
