"""The pipeline from a dataset to masks: each command, and each function of the Python API, is one function here.

Each calls one package and imports it when it is called, so that this file costs nothing to import. ``options`` is
the record of a command, and ``changes`` are single fields of it by name:

    pipeline.predict("RUN", "IMAGES", "MASKS", fast=True)
    pipeline.predict("RUN", "IMAGES", "MASKS", read_recipe("predict.yaml", PredictOptions), fast=True)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmamba.errors import ConfigError
from medmamba.training.run import train as train

if TYPE_CHECKING:
    from medmamba.bundle.graphs import Parity
    from medmamba.bundle.options import BundleCard, ExportOptions
    from medmamba.bundle.write import BundleReport
    from medmamba.command_options import (
        ConvertDatasetOptions,
        ConvertPlansOptions,
        ConvertWeightsOptions,
        DemoOptions,
        DicomSegOptions,
        ExplainOptions,
        InfoOptions,
        ReproduceOptions,
    )
    from medmamba.datasets import Conversion
    from medmamba.demo import DemoResult
    from medmamba.evaluation.options import EvaluateOptions
    from medmamba.evaluation.report import Evaluation
    from medmamba.evaluation.run import EvaluationResult
    from medmamba.inference.folder.reproduce import Reproduction
    from medmamba.inference.folder.run import PredictionReport
    from medmamba.inference.options import PredictOptions
    from medmamba.inference.predictor import Predictor
    from medmamba.model_selection.options import FindBestOptions
    from medmamba.models.prediction_setup import PredictionSetup
    from medmamba.networks.published.weights import WeightReport
    from medmamba.planning.options import PlanRequest
    from medmamba.plans.schema import Plan
    from medmamba.run_report.cross_validation import CrossValidation
    from medmamba.run_report.options import ReportOptions
    from medmamba.serving.options import ServeOptions
    from medmamba.training.config import TrainConfig
    from medmamba.training.options import Fold, PretrainOptions, TrainOptions
    from medmamba.training.progress import StepReport, TrainingResult

OnItem = Callable[[str, int, int], None]
"""Progress: name of the stage, items done, items in all."""
Line = Callable[[str], None]
OnStep = Callable[["StepReport"], None]


def no_progress(*progress: object) -> None:
    """What is done with progress and messages that nobody asked for."""


def plan(
    dataset: str | Path,
    run: str | Path,
    options: PlanRequest | None = None,
    *,
    on_item: OnItem = no_progress,
    on_warning: Line = no_progress,
    on_message: Line = no_progress,
    **changes: Any,
) -> Plan:
    """Measure a dataset, plan for it and preprocess its training cases into the run folder."""
    from medmamba.planning.run import plan

    return plan(dataset, run, options, on_item=on_item, on_warning=on_warning, on_message=on_message, **changes)


def train_folds(
    run: str | Path,
    options: TrainOptions,
    config: TrainConfig,
    *,
    on_step: OnStep = no_progress,
    on_event: Line = no_progress,
    on_start: Line = no_progress,
) -> dict[Fold, TrainingResult]:
    """Train each fold of ``options.folds``, as :func:`train` does with one; on several devices at the same time."""
    from medmamba.models.run_folder import RunFolder

    RunFolder(Path(run)).read_plan()  # a missing run is reported before torch is imported
    from medmamba.training.folds import train_folds

    if options.max_hours is not None:
        if config.max_minutes is not None:
            raise ConfigError("--max-minutes and --max-hours are two budgets; give one.")
        config = config.of(config, max_minutes=60 * options.max_hours)
    return train_folds(run, options, config, on_step=on_step, on_event=on_event, on_start=on_start)


def pretrain(
    run: str | Path,
    options: PretrainOptions,
    config: TrainConfig,
    *,
    on_step: OnStep = no_progress,
    on_event: Line = no_progress,
    on_start: Line = no_progress,
) -> TrainingResult:
    """Pretrain a network on images without labels; ``medmamba train --init`` starts from what it learnt."""
    from medmamba.models.run_folder import RunFolder

    RunFolder(Path(run)).read_plan()  # as above
    from medmamba.training.pretrain import pretrain

    return pretrain(run, config=config, on_step=on_step, on_event=on_event, on_start=on_start, **dict(options))


def find_best(
    run: str | Path, options: FindBestOptions | None = None, *, on_item: OnItem = no_progress, **changes: Any
) -> PredictionSetup:
    """Choose configurations, thresholds and cleaning by cross-validation; predict then uses them."""
    from medmamba.model_selection.run import find_best

    return find_best(run, options, on_item=on_item, **changes)


def predict(
    model: str | Path | Predictor,
    images: str | Path | Sequence[Path],
    output: str | Path,
    options: PredictOptions | None = None,
    *,
    on_item: OnItem = no_progress,
    on_message: Line = no_progress,
    wait: bool = False,
    **changes: Any,
) -> PredictionReport:
    """Predict a file, a zip or every case of a folder; masks and ``report.json`` land in ``output``.

    With ``wait`` the processes of torchrun end together: one that ends with an error would take the others with it.
    """
    from medmamba.inference.folder.run import predict
    from medmamba.inference.options import PredictOptions
    from medmamba.training.distributed import wait_for_all

    chosen = PredictOptions.of(options, **changes)
    report = predict(model, images, output, chosen, on_item=on_item, on_message=on_message)
    if wait:
        wait_for_all()
    return report


def reproduce(
    report: str | Path,
    model: str | Path,
    images: str | Path,
    options: ReproduceOptions,
    *,
    on_item: OnItem = no_progress,
) -> Reproduction:
    """Make the masks of a report.json again and compare them byte by byte."""
    from medmamba.inference.folder.reproduce import reproduce

    return reproduce(report, model, images, cases=options.cases, device=options.device, on_item=on_item)


def evaluate(
    predictions: str | Path,
    truths: str | Path | Sequence[Path],
    options: EvaluateOptions | None = None,
    *,
    output: str | Path | None = None,
    **changes: Any,
) -> Evaluation:
    """Compare masks with truths; tables and a page land in ``output`` (default: beside the masks)."""
    if "tolerance" in changes:  # its name in version 0.1
        changes["tolerance_mm"] = changes.pop("tolerance")
    return evaluate_and_compare(predictions, truths, options, output=output, **changes).evaluation


def evaluate_and_compare(
    predictions: str | Path,
    truths: str | Path | Sequence[Path],
    options: EvaluateOptions | None = None,
    *,
    output: str | Path | None = None,
    on_item: OnItem = no_progress,
    **changes: Any,
) -> EvaluationResult:
    """As :func:`evaluate`, with the comparison to a second folder of masks and the subgroups, where asked for."""
    from medmamba.evaluation.run import run_evaluation

    return run_evaluation(predictions, truths, options, output=output, on_item=on_item, **changes)


def report(
    run: str | Path, options: ReportOptions | None = None, *, on_item: OnItem = no_progress, **changes: Any
) -> CrossValidation:
    """Write RUN/report/index.html: results by fold, worst and best cases, a viewer, curves, the plan's reasons."""
    from medmamba.run_report.write import write_report

    return write_report(run, options, on_item=on_item, **changes)


def explain(run: str | Path, options: ExplainOptions) -> tuple[Plan, list[str]]:
    """The plan of a run, and every decision in lines; with ``what_if`` what would differ with other options."""
    from medmamba.models.run_folder import RunFolder
    from medmamba.plans.explain import compare_lines, explain_lines
    from medmamba.plans.what_if import changes_from, what_if

    folder = RunFolder(Path(run))
    plan = folder.read_plan()
    if options.what_if is None:
        return plan, explain_lines(plan)
    other = what_if(plan, folder.read_fingerprint(), **changes_from(options.what_if))
    return plan, compare_lines(plan, other, names=("now", options.what_if.strip()))


def export(
    model: str | Path, output: str | Path, card: BundleCard, options: ExportOptions
) -> tuple[BundleReport, list[tuple[str, Parity]]]:
    """Write a MONAI Bundle and prove its masks; also the graphs asked for, each row with the name of its graph."""
    from medmamba.bundle.graphs import export_graph
    from medmamba.bundle.write import export_bundle

    report = export_bundle(
        model,
        output,
        card,
        options.check_on,
        configuration=options.configuration,
        folds=options.folds,
        mirror=options.mirror,
        most_cases=options.most_cases,
    )
    return report, [(kind, row) for kind in options.graphs for row in export_graph(report.folder, kind)]


def dicom_seg(mask: str | Path, series: str | Path, output: str | Path, options: DicomSegOptions) -> dict[str, int]:
    """Write a mask as DICOM SEG of its series; returns the labels that it names."""
    from medmamba.dicom.export import mask_to_segmentation

    return mask_to_segmentation(mask, series, output, **dict(options))


def serve(
    model: str | Path, options: ServeOptions | None = None, *, on_message: Line = no_progress, **changes: Any
) -> None:
    """Answer POST /predict until interrupted."""
    from medmamba.serving.run import run_service

    run_service(model, options, on_message=on_message, **changes)


def convert_dataset(
    source: str | Path, output: str | Path, options: ConvertDatasetOptions, *, on_item: OnItem = no_progress
) -> Conversion:
    """Write a dataset in nnU-Net's raw layout or the Decathlon's."""
    from medmamba.datasets import convert_dataset

    return convert_dataset(source, output, options.layout, on_case=lambda done, total: on_item("convert", done, total))


def convert_plans(source: str | Path, output: str | Path, options: ConvertPlansOptions) -> str:
    """Write nnU-Net's plans as a plan of ours, or ours as nnU-Net's; returns what was written."""
    from medmamba.planning.convert import convert_plan

    return convert_plan(Path(source), Path(output), options.dataset)


def convert_weights(source: str | Path, output: str | Path, options: ConvertWeightsOptions) -> WeightReport:
    """Translate a published checkpoint to our names."""
    from medmamba.networks.published.weights import convert_weights

    return convert_weights(source, output, family=options.family)


def info(network: str, options: InfoOptions) -> list[str]:
    """What a network is and what it costs, in lines."""
    from medmamba.models.network import describe_network

    return describe_network(network, spatial_dims=options.dims, size=options.size)


def doctor() -> list[str]:
    """What this machine can do, in lines."""
    from medmamba.doctor import doctor_lines

    return list(doctor_lines())


def demo(options: DemoOptions, *, on_item: OnItem = no_progress, on_step: OnStep = no_progress) -> DemoResult:
    """Plan, train, predict and evaluate on a small real dataset."""
    from medmamba.demo import run_demo

    return run_demo(options, on_item=on_item, on_step=on_step)
