"""``medmamba predict`` and ``medmamba reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba.cli.answer import Answer


def predict(
    model: Annotated[Path, typer.Argument(help="Run folder, trained fold, or bundle.")],
    images: Annotated[
        Path, typer.Argument(help="An image, a folder of images, the folder of a DICOM series, or a zip of either.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for masks and report.json.")],
    configuration: Annotated[
        list[str] | None, typer.Option(help="Configuration; repeat for an ensemble. Default: that of find-best.")
    ] = None,
    fold: Annotated[list[str] | None, typer.Option(help="Fold to use; repeat for several. Default: all.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    no_mirror: Annotated[bool, typer.Option("--no-mirror", help="No test-time mirroring: 8x faster in 3D.")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="No mirroring and less overlap of patches.")] = False,
    patch_size: Annotated[str | None, typer.Option(help="Other patch edges than the plan's, as 96,96,96.")] = None,
    tile_batch: Annotated[int, typer.Option(help="Patches that go through the network together.", min=1)] = 1,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, fp16, or auto: the fastest here; scans are always fp32.")
    ] = "fp32",
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write the probability of every class.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what an interrupted run has finished.")] = False,
    part: Annotated[str | None, typer.Option(help="Only part i of n, as 2/4: for several machines.")] = None,
    workers: Annotated[
        int, typer.Option(help="Processes that share the cases, each with its own model; 0: none but this.", min=0)
    ] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="What needs review fails; missing folds too.")] = False,
    pseudonymise: Annotated[
        bool, typer.Option("--pseudonymise", help="No case names in reports and messages; key in pseudonyms.csv.")
    ] = False,
    scratch: Annotated[Path | None, typer.Option(help="Folder for what does not fit into memory.")] = None,
    memory: Annotated[
        float | None, typer.Option(help="Memory in GiB to plan with. Default: 6, or most of what is free.", min=0)
    ] = None,
    series: Annotated[
        str | None, typer.Option(help="Number or UID of the DICOM series, where a study holds several.")
    ] = None,
    dicom_seg: Annotated[
        bool, typer.Option("--dicom-seg", help="Also write each mask as DICOM SEG beside its series' own objects.")
    ] = False,
    dicom_rtstruct: Annotated[
        bool, typer.Option("--dicom-rtstruct", help="Also write each mask as contours (DICOM RTSTRUCT) of its series.")
    ] = False,
    codes: Annotated[
        Path | None, typer.Option(help="labels.json with code and colour of each label of the DICOM objects.")
    ] = None,
) -> Answer:
    """Predict masks on the images' own grids, with a report of how each was made."""
    from medmamba import pipeline
    from medmamba.cli.console import console, report_warnings, stages
    from medmamba.errors import InputErrors, PartialError
    from medmamba.training.distributed import wait_for_all

    with stages() as on_item:
        report = pipeline.predict(
            model,
            images,
            output,
            configuration=configuration,
            folds=fold,
            device=device,
            mirror=False if no_mirror else None,
            fast=fast,
            patch_size=patch_size,
            tile_batch=tile_batch,
            precision=precision,
            scratch=scratch,
            memory_gib=memory,
            strict=strict,
            part=part,
            resume=resume,
            probabilities=probabilities,
            pseudonymise=pseudonymise,
            workers=workers,
            series=series,
            dicom_seg=dicom_seg,
            dicom_rtstruct=dicom_rtstruct,
            codes=codes,
            on_item=on_item,
            on_message=lambda line: console.print(line, markup=False),
        )
    kept = f", {len(report.resumed)} of them kept from before" if report.resumed else ""
    console.print(f"{len(report.done)} mask(s){kept} and report.json: {output}", markup=False)
    report_warnings([f"{case}: review: {'; '.join(reasons)}" for case, reasons in report.review.items()])
    wait_for_all()  # a process of torchrun that ends with an error takes the others with it
    if report.failed:
        lines = list(report.failed.values())
        summary = f"{len(report.done)} ok, {len(lines)} failed: {', '.join(report.failed)}"
        if not report.done:
            raise InputErrors(lines, summary=summary)
        raise PartialError("\n".join([*lines, summary]))
    return {"output": output, "cases": report.done, "resumed": report.resumed, "review": report.review}


def reproduce(
    report: Annotated[Path, typer.Argument(help="report.json of a prediction.")],
    model: Annotated[Path, typer.Argument(help="The run or fold that made it.")],
    images: Annotated[Path, typer.Argument(help="The images it was made from.")],
    case: Annotated[list[str] | None, typer.Option(help="Only this case; repeat for several. Default: all.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> Answer:
    """Make the masks of a report again and compare them byte by byte."""
    from medmamba.cli.console import console, stages
    from medmamba.errors import PartialError
    from medmamba.inference.folder.reproduce import reproduce as again

    with stages() as on_item:
        result = again(report, model, images, cases=case, device=device, on_item=on_item)
    console.print(f"{len(result.same)} mask(s) reproduced byte by byte.")
    if result.other:
        raise PartialError(f"{len(result.other)} mask(s) came out differently: {', '.join(result.other)}.")
    return {"same": result.same}


def find_best(
    run: Annotated[Path, typer.Argument(help="Run folder with trained folds.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    no_mirror: Annotated[bool, typer.Option("--no-mirror", help="No test-time mirroring.")] = False,
    scratch: Annotated[Path | None, typer.Option(help="Folder for probabilities of regions meanwhile.")] = None,
) -> Answer:
    """Choose configurations, thresholds, cleaning and limits of doubt by cross-validation; predict then uses them."""
    from medmamba.cli.console import console, stages
    from medmamba.model_selection.run import find_best as choose

    with stages() as on_item:
        recipe = choose(run, device=device, mirror=not no_mirror, scratch=scratch, on_item=on_item)
    for name, dice in recipe.dice.items():
        mark = " <- chosen" if name == "+".join(recipe.configurations) else ""
        console.print(f"{name}: Dice {dice:.4f}{mark}", markup=False)
    used = "; ".join(f"{name}: {', '.join(folds)}" for name, folds in recipe.folds.items())
    console.print(f"{recipe.cases} validation cases, folds {used}", markup=False)
    for step in recipe.cleaning:
        console.print(f"{step.label}: {step.action.replace('_', ' ')}, Dice +{step.gain:.4f}", markup=False)
    for name, threshold in recipe.thresholds.items():
        console.print(f"{name}: above probability {threshold:g}", markup=False)
    if recipe.limits is None:
        console.print("too few usual cases to measure limits of doubt: the fixed ones stay")
    else:
        console.print(
            f"review above entropy {recipe.limits.max_entropy:.3f} or below fold agreement "
            f"{recipe.limits.min_agreement:.3f}, from {recipe.limits.cases} cases"
        )
    console.print(f"temperature {recipe.temperature:g}. Written: {run / 'best.json'}", markup=False)
    return {"recipe": recipe, "written": run / "best.json"}
