"""Commands from a dataset to a trained run, and the conversions: demo, plan, train, find-best, report and others."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from medmamba.cli.console import Answer, clock, console, is_first_process, report_warnings, stages, training_progress
from medmamba.cli.prediction import dice_lines
from medmamba.cli.terminal import resumable
from medmamba.command_options import (
    ConvertDatasetOptions,
    ConvertModelOptions,
    ConvertPlansOptions,
    ConvertWeightsOptions,
    DemoOptions,
    DoctorOptions,
    ExplainOptions,
    FindBestOptions,
    InfoOptions,
    ReportOptions,
)
from medmamba.errors import MedmambaError, PartialError, counted, gib_text
from medmamba.plans.options import PlanRequest
from medmamba.training.config import TrainConfig
from medmamba.training.options import PRETRAINING_FIELDS, PretrainOptions, TrainOptions

PlannedRun = Annotated[Path, typer.Argument(help="Run folder written by `medmamba plan`.")]
NewRun = Annotated[Path, typer.Option("--output", "-o", help="Run folder to create.")]
TrainedRun = Annotated[Path, typer.Argument(help="Run folder with trained folds.")]


def demo(options: DemoOptions) -> Answer:
    """Plan, train, predict and evaluate on 60 real MR volumes of the hippocampus."""
    from medmamba.demo import run_demo

    with stages() as on_item, training_progress() as on_step:
        result = run_demo(options, on_item=on_item, on_step=on_step)
    evaluation = result.evaluation
    console.print(*dice_lines(evaluation), sep="\n")
    console.print(f"Mean foreground Dice on {len(evaluation.cases)} test cases: {evaluation.mean_foreground:.4f}")
    spent = ", ".join(f"{name} {clock(seconds)}" for name, seconds in result.seconds.items())
    in_all = f"Time: {spent}, in all {clock(sum(result.seconds.values()))}"
    console.print(f"{in_all}. Peak memory: {gib_text(result.peak_memory_gib)}")
    console.print(f"Masks: {result.masks}    Overview: {result.overview}")
    return {
        "mean_foreground_dice": evaluation.mean_foreground,
        "dice": evaluation.mean_per_label(),
        "cases": len(evaluation.cases),
        "seconds": result.seconds,
        "peak_memory_gib": result.peak_memory_gib,
        "masks": result.masks,
        "overview": result.overview,
    }


def plan(
    dataset: Annotated[
        Path,
        typer.Argument(help="Folder with dataset.json (Decathlon, nnU-Net v2 raw, table of paths), or a CSV table."),
    ],
    output: NewRun,
    options: PlanRequest,
) -> Answer:
    """Measure a dataset, choose spacing, patch, batch and network, and preprocess its cases."""
    from medmamba.planning.run import plan
    from medmamba.plans.explain import summary_lines

    warnings: list[str] = []
    table: list[str] = []
    with stages() as on_item:
        made = plan(dataset, output, options, on_item=on_item, on_warning=warnings.append, on_message=table.append)
    report_warnings(list(dict.fromkeys(warnings)))
    console.print(*table, *summary_lines(made, console.width), sep="\n")
    console.print(f"Plan and preprocessed cases: {output}    Report: {output / 'report' / 'dataset.html'}")
    console.print(f"Why each number: medmamba explain {output}    Next: medmamba train {output}")
    return {"run": output, "plan": made, "warnings": warnings}


def explain(run: PlannedRun, options: ExplainOptions) -> Answer:
    """Print every decision of the plan: rule, inputs, value and reason."""
    from medmamba.models.run_folder import RunFolder
    from medmamba.plans.explain import compare_lines, explain_lines
    from medmamba.plans.options import changes_from
    from medmamba.plans.planner import what_if

    folder = RunFolder(run)
    plan = folder.read_plan()
    if options.what_if is None:
        lines = explain_lines(plan)
    else:
        other = what_if(plan, folder.read_fingerprint(), **changes_from(options.what_if))
        lines = compare_lines(plan, other, names=("now", options.what_if.strip()), width=console.width)
    console.print(*lines, sep="\n")
    return {"plan": plan}


def pretrain(
    run: Annotated[Path, typer.Argument(help="Run folder written by `medmamba plan`; its labels are not used.")],
    options: PretrainOptions,
    config: Annotated[TrainConfig, PRETRAINING_FIELDS],
) -> Answer:
    """Pretrain on unlabelled images by reconstructing masked slices; `train --init` starts from the result."""
    from medmamba.models.run_folder import RunFolder

    plan = RunFolder(run).read_plan()  # a missing run is reported before torch is imported
    from medmamba.training.pretrain import pretrain

    with (
        training_progress() as on_step,
        resumable(
            "pretrain", lambda: _saved(run / "pretrained" / (options.configuration or plan.default_configuration))
        ),
    ):
        result = pretrain(run, options, config=config, on_step=on_step, on_event=_warn, on_start=console.print)
    console.print(f"{result.steps} steps in {clock(result.seconds)}, last loss {result.final_loss:.4f}")
    console.print(f"Next: medmamba train {run} --init {result.folder}")
    return {"model": result.folder, "steps": result.steps, "seconds": result.seconds, "loss": result.final_loss}


def train(run: PlannedRun, options: TrainOptions, config: TrainConfig) -> Answer:
    """Train folds; writes checkpoints and metrics to RUN/models, curves and figures to RUN/report."""
    from medmamba.models.run_folder import RunFolder

    plan = RunFolder(run).read_plan()  # a missing run is reported before torch is imported
    name = options.configuration or plan.default_configuration
    folds = [RunFolder(run).fold(name, fold) for fold in options.folds]
    from medmamba.training.folds import train_folds
    from medmamba.training.observers import closing_lines

    with training_progress() as on_step, resumable("train", lambda: any(map(_saved, folds))):
        results = train_folds(run, options, config, on_step=on_step, on_event=_warn, on_start=console.print)
    if is_first_process():
        for fold, result in results.items():
            lines = closing_lines(result, run)[:-1]
            console.print(*(lines if len(results) == 1 else [f"Fold {fold}: {' '.join(lines)}"]), sep="\n")
        dices = [result.validation_dice for result in results.values() if result.validation_dice is not None]
        if len(results) > 1 and dices:
            console.print(f"Mean validation Dice of {len(dices)} folds: {sum(dices) / len(dices):.4f}")
        console.print(f"Model: {list(results.values())[-1].folder}    Report: {run / 'report' / 'training.html'}")
        best = _best_of_folds(run, config) if options.find_best and any(fold != "all" for fold in results) else None
        console.print(f"Next: medmamba predict {run} IMAGES -o MASKS")
        return {"run": run, "folds": results, "find_best": best}
    return {"run": run, "folds": results}


def _best_of_folds(run: Path, config: TrainConfig) -> Answer | None:
    """What find-best chose and learned after the last fold; None before, or where it takes long or cannot be done."""
    from medmamba.model_selection.after_training import whole_cross_validation

    try:
        whole = whole_cross_validation(run)
        if whole is None:
            return None
        console.print(f"{counted(whole.folds, 'fold')} trained: the cross-validation is whole.")
        about = clock(whole.find_best)
        if not whole.is_cheap:
            console.print(f"To choose and to learn from it (about {about}): medmamba find-best {run}")
            return None
        console.print(f"find-best follows (about {about}; without it: --no-find-best)")
        options = FindBestOptions(device=config.device, scan_backend=config.scan_backend)
        return find_best(run, options)
    except MedmambaError as error:  # the folds are trained, whatever becomes of it
        report_warnings([f"find-best was not done: {error}"])
        return None


def _saved(fold: Path) -> bool:
    """Whether a fold can be resumed."""
    return (fold / "checkpoints" / "last" / "state.json").is_file()


def _warn(line: str) -> None:
    report_warnings([line])


def find_best(run: TrainedRun, options: FindBestOptions) -> Answer:
    """Choose configurations, thresholds, post-processing and limits of uncertainty by cross-validation, for predict."""
    from medmamba.model_selection.run import find_best
    from medmamba.models.expectations import read_expectations

    with stages() as on_item:
        recipe = find_best(run, options, on_item=on_item)
    for name, dice in recipe.dice.items():
        mark = " <- chosen" if name == "+".join(recipe.configurations) else ""
        console.print(f"{name}: Dice {dice:.4f}{mark}")
    used = "; ".join(f"{name}: {', '.join(folds)}" for name, folds in recipe.folds.items())
    console.print(f"{recipe.cases} validation cases, folds {used}")
    for step in recipe.cleaning:
        console.print(f"{step.sentence()}, Dice +{step.gain:.4f}")
    for name, threshold in recipe.thresholds.items():
        console.print(f"{name}: above probability {threshold:g}")
    if recipe.limits is None:
        console.print("too few usual cases to measure limits of uncertainty: the fixed ones stay")
    else:
        console.print(
            f"review above entropy {recipe.limits.max_entropy:.3f} or below fold agreement "
            f"{recipe.limits.min_agreement:.3f}, from {recipe.limits.cases} cases"
        )
    console.print(f"temperature {recipe.temperature:g}. Written: {run / 'best.json'}")
    expectations = read_expectations(run, recipe.plan_sha256)
    for line in () if expectations is None else expectations.lines():
        console.print(line)
    return {"recipe": recipe, "written": run / "best.json", "expectations": expectations}


def report(run: TrainedRun, options: ReportOptions) -> Answer:
    """Write RUN/report/index.html: results per fold, worst and best cases, a viewer, curves, the plan's reasons."""
    from medmamba.run_report.write import write_report

    with stages() as on_item:
        found = write_report(run, options, on_item=on_item)
    mean, standard_deviation, count = found.mean()
    kind = "held-out" if found.held_out else "training (nothing is held out)"
    page = run / "report" / "index.html"
    console.print(f"Dice of {count} {kind} cases: {mean:.4f} ± {standard_deviation:.4f}")
    console.print(f"Report: {page}")
    return {"report": page, "held_out": found.held_out, "dice": mean, "cases": count}


def info(network: Annotated[str, typer.Argument(help="Network.")], options: InfoOptions) -> Answer:
    """Print a network's options, parameters, multiply-accumulates and scan state updates, with four stages."""
    from medmamba.models.network import describe_network

    lines = describe_network(network, spatial_dims=options.dims, size=options.size)
    console.print(*lines, sep="\n")
    return {"network": network, "lines": lines}


def doctor(options: DoctorOptions) -> Answer:
    """Report versions, devices, memory, and which scan backend runs here and why the others do not."""
    from medmamba.doctor import doctor_lines

    lines = list(doctor_lines())
    console.print(*lines, sep="\n")
    if not options.gpu:
        return {"lines": lines}
    from medmamba.doctor_gpu import gpu_findings

    wrong = 0
    for finding in gpu_findings(options.device):
        console.print(finding.text)
        lines.append(finding.text)
        wrong += not finding.right
    if wrong:
        raise PartialError(f"{counted(wrong, 'check')} of {options.device} failed; what to do stands in its line.")
    return {"lines": lines}


def convert_dataset(
    source: Annotated[Path, typer.Argument(help="Dataset in any supported layout.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to create.")],
    options: ConvertDatasetOptions,
) -> Answer:
    """Convert a dataset to the layout of nnU-Net raw or of the Medical Segmentation Decathlon."""
    from medmamba.datasets import convert_dataset
    from medmamba.images import ReadOptions

    reading = ReadOptions(**options.reading)
    with stages() as on_item:
        made = convert_dataset(source, output, options.layout, reading, on_case=partial(on_item, "convert"))
    report_warnings(made.warnings)
    console.print(f"{made.cases} training and {counted(made.test_cases, 'test case')}: {made.folder}")
    return {"folder": made.folder, "cases": made.cases, "test_cases": made.test_cases, "warnings": made.warnings}


def convert_plans(
    source: Annotated[Path, typer.Argument(help="nnUNetPlans.json, or a run folder or plan.json of medmamba.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    options: ConvertPlansOptions,
) -> Answer:
    """Convert an nnU-Net plans file to a plan, or a plan to an nnU-Net plans file where nnU-Net has its network."""
    from medmamba.planning.convert import convert_plan

    line = convert_plan(source, output, options.dataset, overwrite=options.overwrite)
    console.print(line)
    return {"written": output, "message": line}


def convert_model(
    source: Annotated[
        Path,
        typer.Argument(
            help="nnU-Net's TRAINER__PLANS__CONFIGURATION, a folder with several, or an exported zip; or a run folder."
        ),
    ],
    output: NewRun,
    options: ConvertModelOptions,
) -> Answer:
    """Convert nnU-Net v2 models to a run that predicts as nnU-Net does, without running code of theirs; or back."""
    from medmamba.nnunet.convert import convert_model
    from medmamba.nnunet.write_results import WrittenResults

    with stages(of="fold") as on_item:
        made = convert_model(source, output, options, on_fold=partial(on_item, "convert"))
    console.print(*made.notes, sep="\n")
    if isinstance(made, WrittenResults):
        console.print(f"Results: {made.folder}    Next: {made.command()}")
        return {"results": made.folder, "folds": made.folds, "notes": made.notes}
    console.print(f"Model: {output}    Next: medmamba predict {output} IMAGES -o MASKS")
    return {"run": made.run, "folds": made.folds, "notes": made.notes}


def convert_weights(
    source: Annotated[
        Path, typer.Argument(help="Published checkpoint: .safetensors, or .pth (loaded as weights only).")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help=".safetensors file to write.")],
    options: ConvertWeightsOptions,
) -> Answer:
    """Convert published weights to the names used here; reports matched, unused and missing weights."""
    from medmamba.networks.published.weights import convert_weights

    report = convert_weights(source, output, family=options.family, overwrite=options.overwrite)
    console.print(report.summary())
    console.print(f"Weights: {output}")
    return {"weights": output, "report": report}
