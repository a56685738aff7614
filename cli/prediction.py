"""Commands that use a trained model: predict, reproduce, evaluate, dicom-seg, export, serve."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medmamba.bundle.options import BundleCard, ExportOptions
from medmamba.cli.console import Answer, console, report_warnings, stages
from medmamba.cli.terminal import resumable
from medmamba.command_options import DicomSegOptions, ReproduceOptions, ServeOptions
from medmamba.errors import PartialError, counted
from medmamba.evaluation.options import EvaluateOptions
from medmamba.inference.options import EnsembleOptions, PredictOptions

if TYPE_CHECKING:
    from medmamba.evaluation.report import Evaluation

Models = Annotated[
    list[Path],
    typer.Argument(
        metavar="MODEL", help="Run folder, trained fold, or bundle; several are averaged (same labels and channels)."
    ),
]


def predict(
    model: Models,
    images: Annotated[
        Path, typer.Argument(help="Image, folder of images, folder of a DICOM series, or a zip of one of them.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for masks and report.json.")],
    options: PredictOptions,
) -> Answer:
    """Predict masks on the images' own grids, with a report."""
    from medmamba.inference.folder.run import predict
    from medmamba.training.distributed import wait_for_all

    finished = 0

    with stages() as show, resumable("predict", lambda: finished > 0 or any(output.glob("reports/*.json"))):

        def on_item(stage: str, done: int, total: int) -> None:
            nonlocal finished
            finished = done
            show(stage, done, total)

        report = predict(model, images, output, options, on_item=on_item, on_message=console.print)
    wait_for_all()  # under torchrun a process that ends with an error would take the others with it
    kept = f", {len(report.resumed)} of them kept from before" if report.resumed else ""
    lacking = f", {len(report.not_written)} of them incomplete" if report.not_written else ""
    console.print(f"{counted(len(report.done), 'mask')}{kept}{lacking} and report.json: {output}")
    report_warnings([f"{case}: review: {'; '.join(reasons)}" for case, reasons in report.review.items()])
    report.raise_failures()
    return {"output": output, "cases": report.done, "resumed": report.resumed, "review": report.review}


def reproduce(
    report: Annotated[Path, typer.Argument(help="report.json of the prediction.")],
    model: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL", help="Run folder or trained fold that was used; of several, all in order."),
    ],
    images: Annotated[Path, typer.Argument(help="Images that were predicted.")],
    options: ReproduceOptions,
) -> Answer:
    """Repeat the prediction of a report and compare the masks byte by byte."""
    from medmamba.inference.folder.run import reproduce

    with stages() as on_item:
        result = reproduce(report, model, images, on_item=on_item, **dict(options))
    console.print(f"{counted(len(result.same), 'mask')} reproduced byte by byte.")
    if result.other:
        raise PartialError(f"{counted(len(result.other), 'mask')} came out differently: {', '.join(result.other)}.")
    return {"same": result.same}


def ensemble(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER", help="Folders of `medmamba predict --probabilities` for the same images."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for masks and report.json.")],
    options: EnsembleOptions,
) -> Answer:
    """Average the stored probabilities of several folders; `predict MODEL... IMAGES` does so without storing any."""
    from medmamba.inference.folder.average import average_folders

    with stages() as on_item:
        cases = average_folders(folders, output, options, on_item=on_item)
    console.print(f"{counted(len(cases), 'mask')} and report.json: {output}")
    return {"output": output, "cases": cases}


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted masks.")],
    truths: Annotated[Path, typer.Argument(help="Folder of reference label maps with the same case names.")],
    options: EvaluateOptions,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Output folder. Default: PREDICTIONS.")] = None,
) -> Answer:
    """Compute Dice, IoU, HD95, NSD, volumes and lesion metrics per case and structure; writes JSON, CSV and HTML."""
    from medmamba.evaluation.metrics import METRICS
    from medmamba.evaluation.run import difference_rows, run_evaluation, summary_rows
    from medmamba.plans.text_table import aligned

    with stages() as on_item:
        result = run_evaluation(predictions, truths, options, output=output, on_item=on_item)
    evaluation, comparison = result.evaluation, result.comparison
    metrics = [METRICS[name] for name in evaluation.metrics if METRICS[name].tables == "all"]
    console.print(*dice_lines(evaluation), "", *aligned(summary_rows(evaluation, metrics), console.width), sep="\n")
    console.print(f"Mean [95% interval]; NSD at {evaluation.tolerances()}.")
    if comparison is not None:
        head = ("structure", "metric", comparison.first, comparison.second, "difference", "95% interval")
        tests = ("p (Wilcoxon)", "p (Holm)", "higher / equal / lower")
        console.print("", f"{comparison.second} minus {comparison.first}, paired:", sep="\n")
        console.print(*aligned([(*head, *tests), *difference_rows(comparison)], console.width), sep="\n")
    if scores := result.expectations.get("all"):
        console.print("", "Expected quality:", *aligned([["score", "value"], *scores.rows()], console.width), sep="\n")
    for name, voxels in result.voxels.items():
        console.print(f"Chance of error of {name}: ECE {voxels.ece:.4f}, Brier {voxels.brier:.4f}.")
    report_warnings(evaluation.warnings)
    console.print(f"evaluation.html, .json and .csv: {result.folder}")
    return {
        "folder": result.folder,
        "mean_foreground_dice": evaluation.mean_foreground,
        "dice": evaluation.mean_per_label(),
        "cases": evaluation.mean_per_case(),
        "missing": evaluation.missing,
        "comparison": comparison,
        "expectations": result.expectations,
        "voxels": result.voxels,
    }


def dicom_seg(
    mask: Annotated[Path, typer.Argument(help="Mask on the grid of the series, written by `medmamba predict`.")],
    series: Annotated[Path, typer.Argument(help="The predicted series, or its study: a folder or a zip.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="DICOM SEG file to write.")],
    options: DicomSegOptions,
) -> Answer:
    """Write a mask as a DICOM SEG that references its series, and verify it by reading it back."""
    from medmamba.dicom.segmentation import mask_to_segmentation

    names = mask_to_segmentation(mask, series, output, **dict(options))
    console.print(f"{counted(len(names) - 1, 'segment')}, read back equal: {output}")
    return {"segmentation": output, "labels": names}


def export(
    model: Annotated[Path, typer.Argument(help="Run folder, or the folder of one trained fold.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the MONAI Bundle to write.")],
    options: ExportOptions,
    card: BundleCard,
) -> Answer:
    """Write a MONAI Bundle that runs without medmamba, and verify that it gives the same masks."""
    from medmamba.bundle.write import export_bundle

    report = export_bundle(model, output, card, options.check_on, options)
    console.print("verify_metadata and verify_net_in_out passed; run by MONAI without medmamba:")
    for case in report.cases:
        console.print(f"  {case.case_id}: {case.voxels} voxels equal ({case.foreground} of them foreground)")
    for row in report.graphs:
        shape = "x".join(map(str, row.shape))
        console.print(f"  {row.kind} {shape}: largest difference of the logits {row.difference:.2g}")
    console.print(f"MONAI Bundle: {report.folder}")
    return {"bundle": report.folder, "checked": report.cases, "graphs": report.graphs}


def serve(model: Models, options: ServeOptions) -> Answer:
    """Serve predictions over HTTP on this machine: POST /predict returns mask and report."""
    from medmamba.serving.app import run_service

    run_service(model, options, on_message=console.print)
    return {"stopped": True}


def dice_lines(evaluation: "Evaluation") -> list[str]:
    """Dice per case (rows) and label (columns) with the means below, as aligned text."""
    from medmamba.pages.render import number
    from medmamba.plans.text_table import aligned

    means = evaluation.mean_per_case()
    values = {case_id: [one.value("dice") for one in scores.values()] for case_id, scores in evaluation.cases.items()}
    rows = [(case_id, [*dices, means[case_id]]) for case_id, dices in values.items()]
    rows.append(("mean", [*evaluation.mean_per_label().values(), evaluation.mean_foreground]))
    cells = [[name, *(number(value, 4) for value in dices)] for name, dices in rows]
    return aligned([["Dice", *evaluation.structures, "mean"], *cells], console.width)
