"""The verbs of medmamba: plan, train, predict, evaluate. The commands and the Python API both come through here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from medmamba.atomic import FolderLock, remove_leftovers, write_json, write_text
from medmamba.errors import unknown_name
from medmamba.run_folder import RunFolder
from medmamba.training.run import train as train

if TYPE_CHECKING:
    from medmamba.datasets import DatasetSpec
    from medmamba.evaluation.report import Evaluation
    from medmamba.inference.batch import PredictionReport
    from medmamba.inference.predictor import Predictor
    from medmamba.plans.schema import Plan

OnItem = Callable[[str, int, int], None]
"""Progress: name of the stage, items done, items in all."""


def _silent(stage: str, done: int, total: int) -> None:
    return None


def plan(
    dataset: str | Path,
    run: str | Path,
    *,
    network: str = "vm_unet",
    device_memory_gb: float = 8.0,
    spacing: Sequence[float] | None = None,
    patch_size: Sequence[int] | None = None,
    batch_size: int | None = None,
    mirror: str = "auto",
    on_item: OnItem = _silent,
    on_warning: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Measure a dataset, plan for it and preprocess its training cases into the run folder.

    Every case is checked while it is measured; all problems are raised together (InputErrors) before anything is
    written to ``run``. What is odd but usable goes to ``on_warning``, one line each.
    """
    import numpy as np

    from medmamba.datasets import CaseSpec, LoadedCase, check_dataset, load_case, read_dataset
    from medmamba.fingerprinting import MeasuredCase, measure_case
    from medmamba.heads import Heads
    from medmamba.networks.registry import available_networks
    from medmamba.plans.fingerprint import build_fingerprint, samples_per_case
    from medmamba.plans.folds import folds_of
    from medmamba.plans.planner import make_plan
    from medmamba.preprocessing.case import preprocess_case
    from medmamba.preprocessing.labels import encode, ignore_index, label_names
    from medmamba.preprocessing.store import write_case

    if network not in available_networks():
        raise unknown_name("network", network, available_networks())
    spec = read_dataset(dataset, strict=False)
    samples = samples_per_case(len(spec.cases))

    def measure(case: CaseSpec, loaded: LoadedCase) -> MeasuredCase | None:
        if loaded.labels is None:
            return None
        image, truth = loaded.image, loaded.labels
        return measure_case(
            case.case_id, image.array, truth.array, image.grid, spec.labels, samples=samples, annotated=case.annotated
        )

    report = check_dataset(spec, visit=measure, on_case=lambda done, total: on_item("measure", done, total))
    measured = [(case, case.visited) for case in report.cases if case.visited is not None]
    fingerprint = build_fingerprint(
        spec.name,
        spec.channels,
        spec.labels,
        [found.stats.model_copy(update={"image_hash": case.image_sha256}) for case, found in measured],
        [np.concatenate([found.foreground[channel] for _, found in measured]) for channel in range(len(spec.channels))],
    )
    name_of = {value: name for name, value in spec.labels.items()}
    made = make_plan(
        fingerprint,
        network=network,
        device_memory_gb=device_memory_gb,
        spacing=spacing,
        patch_size=patch_size,
        batch_size=batch_size,
        mirror=mirror,
        regions=regions_by_label(spec) or None,
        region_order=[name_of[value] for value in spec.region_order] or None,
        ignore_label=spec.ignore,
        dataset_hash=_hash_of([text for case, _ in measured for text in (case.image_sha256, case.label_sha256 or "")]),
    )
    Heads.of_plan(made)  # refuses regions that cannot be written back
    folder = RunFolder(Path(run))
    with FolderLock(folder.path):
        remove_leftovers(folder.path)
        folder.plan_path.unlink(missing_ok=True)  # written last: a run folder with a plan is a finished one
        write_text(folder.fingerprint_path, fingerprint.to_json())
        write_json(folder.splits_path, folds_of(fingerprint))
        configuration = made.default
        target = folder.preprocessed(configuration.name)
        rmtree(target, ignore_errors=True)
        patch = tuple(configuration.patch_size)
        names = ["background", *label_names(made)]
        for done, (case, _) in enumerate(measured):
            on_item("preprocess", done, len(measured))
            image, truth = load_case(spec, spec.case(case.case_id))
            assert truth is not None
            indices = encode(truth.array, made)
            prepared = preprocess_case(case.case_id, image.array, image.grid, made, configuration, indices)
            assert prepared.labels is not None
            chunk = (1, *patch) if configuration.spatial_dims == 2 else patch
            looked_for = spec.case(case.case_id).annotated
            write_case(
                target / case.case_id,
                case.case_id,
                prepared.image,
                prepared.labels,
                chunk=chunk,
                annotated=None if looked_for is None else [names.index(name) for name in looked_for],
                ignore=None if made.ignore_label is None else ignore_index(made),
            )
        on_item("preprocess", len(measured), len(measured))
        write_text(folder.plan_path, made.to_json())
    for line in report.warnings:
        on_warning(line)
    return made


def predict(
    model: str | Path | Predictor,
    images: str | Path | Sequence[Path],
    output: str | Path,
    *,
    part: tuple[int, int] | None = None,
    resume: bool = False,
    probabilities: bool = False,
    pseudonymise: bool = False,
    on_item: OnItem = _silent,
    on_message: Callable[[str], None] = lambda line: None,
    **choices: Any,
) -> PredictionReport:
    """Predict a file or every case of a folder; masks and ``report.json`` land in ``output``.

    ``choices`` as of :class:`medmamba.Predictor`, the rest as of :func:`medmamba.inference.batch.predict_folder`.
    """
    from medmamba.inference.batch import predict_folder
    from medmamba.inference.cases import find_cases
    from medmamba.inference.predictor import Predictor
    from medmamba.inference.pseudonyms import Pseudonyms

    find_cases(images)  # a wrong path is told before a model is loaded
    return predict_folder(
        model if isinstance(model, Predictor) else Predictor(model, **choices),
        images,
        output,
        part=part,
        resume=resume,
        probabilities=probabilities,
        pseudonyms=Pseudonyms.of_folder(Path(output)) if pseudonymise else None,
        on_item=on_item,
        on_message=on_message,
    )


def evaluate(
    predictions: str | Path, truths: str | Path | Sequence[Path], *, output: str | Path | None = None, **choices: Any
) -> Evaluation:
    """Compare masks with truths; ``choices`` as of :func:`medmamba.evaluation.run.run_evaluation`."""
    from medmamba.evaluation.run import run_evaluation

    return run_evaluation(predictions, truths, output=output, **choices).evaluation


def regions_by_label(spec: DatasetSpec) -> dict[str, list[str]]:
    """A dataset's regions as lists of label names."""
    name_of = {value: name for name, value in spec.labels.items()}
    return {name: [name_of[value] for value in values] for name, values in spec.regions.items()}


def _hash_of(texts: Iterable[str]) -> str:
    return sha256("\n".join(sorted(texts)).encode()).hexdigest()
