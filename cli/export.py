"""``medmamba export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba.cli.answer import Answer

GRAPHS = ("torchscript", "torch-export", "onnx")


def export(
    model: Annotated[Path, typer.Argument(help="Run folder, or the folder of one trained fold.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the MONAI Bundle to write.")],
    check_on: Annotated[Path, typer.Option(help="Real images: bundle and model must give equal masks on them.")],
    licence: Annotated[str, typer.Option("--licence", "--license", help="SPDX name or a text file.")] = "",
    intended_use: Annotated[str, typer.Option(help="What the model is for, in a sentence.")] = "",
    name: Annotated[str, typer.Option(help="Name of the bundle.")] = "medmamba_segmentation",
    release: Annotated[str, typer.Option(help="Version of the bundle.")] = "0.1.0",
    authors: Annotated[str, typer.Option(help="Who made the model.")] = "unnamed",
    description: Annotated[str, typer.Option(help="What the model does.")] = "",
    data_licence: Annotated[str, typer.Option(help="Licence of the training data.")] = "",
    reference: Annotated[list[str] | None, typer.Option(help="A publication; repeat for several.")] = None,
    configuration: Annotated[
        list[str] | None, typer.Option(help="Configuration; repeat for an ensemble. Default: that of find-best.")
    ] = None,
    fold: Annotated[list[str] | None, typer.Option(help="Fold to use; repeat for several. Default: all.")] = None,
    no_mirror: Annotated[bool, typer.Option("--no-mirror", help="No test-time mirroring: 8x faster in 3D.")] = False,
    graph: Annotated[
        list[str] | None, typer.Option("--graph", help="Also torchscript, torch-export or onnx; repeat for several.")
    ] = None,
    most_cases: Annotated[int, typer.Option(help="Check on at most this many cases.", min=1)] = 2,
) -> Answer:
    """Write a MONAI Bundle that MONAI runs without medmamba, and prove that it gives the same masks."""
    from medmamba.bundle.card import BundleCard
    from medmamba.cli.console import console
    from medmamba.cli.options import fold_name
    from medmamba.errors import unknown_name

    for kind in graph or []:
        if kind not in GRAPHS:
            raise unknown_name("--graph", kind, GRAPHS)
    card = BundleCard(
        licence,
        intended_use,
        name=name,
        release=release,
        authors=authors,
        description=description,
        data_licence=data_licence,
        references=tuple(reference or ()),
    )
    from medmamba.bundle.write import export_bundle

    report = export_bundle(
        model,
        output,
        card,
        check_on,
        configuration=configuration,
        folds=None if fold is None else [fold_name(text) for text in fold],
        mirror=not no_mirror,
        most_cases=most_cases,
    )
    console.print("verify_metadata and verify_net_in_out passed; run by MONAI without medmamba:")
    for case in report.cases:
        console.print(
            f"  {case.case_id}: {case.voxels} voxels equal ({case.foreground} of them foreground)", markup=False
        )
    parities = []
    for kind in graph or []:
        from medmamba.bundle.graphs import export_graph

        for row in export_graph(report.folder, kind):
            parities.append(row)
            shape = "x".join(map(str, row.shape))
            console.print(f"  {kind} {shape}: largest difference of the logits {row.difference:.2g}", markup=False)
    console.print(f"MONAI Bundle: {report.folder}", markup=False)
    return {"bundle": report.folder, "checked": report.cases, "graphs": parities}
