"""``medmamba serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba.cli.answer import Answer


def serve(
    model: Annotated[Path, typer.Argument(help="Run folder, trained fold, or bundle.")],
    host: Annotated[str, typer.Option(help="Address to listen on. There is no login: keep to this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8000,
    device: Annotated[
        list[str] | None, typer.Option(help="auto, cpu, cuda or cuda:N; repeat for a queue on each.")
    ] = None,
    fold: Annotated[list[str] | None, typer.Option(help="Fold to use; repeat for several. Default: all.")] = None,
    no_mirror: Annotated[bool, typer.Option("--no-mirror", help="No test-time mirroring: 8x faster in 3D.")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="No mirroring and less overlap of patches.")] = False,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, fp16, or auto: the fastest here; scans are always fp32.")
    ] = "fp32",
    max_upload: Annotated[int, typer.Option(help="Largest upload, in MB.", min=1)] = 512,
    max_memory: Annotated[
        float | None, typer.Option(help="Memory in GiB for one image; larger ones are refused.")
    ] = None,
    max_waiting: Annotated[int, typer.Option(help="Images that may wait at one device.", min=1)] = 8,
) -> Answer:
    """Answer POST /predict with mask and report, on this machine (see docs/how-to/serve-a-model.md)."""
    from medmamba.cli.console import console
    from medmamba.serving.run import run_service

    run_service(
        model,
        host=host,
        port=port,
        devices=device or ("auto",),
        upload_mb=max_upload,
        waiting=max_waiting,
        on_message=lambda line: console.print(line, markup=False),
        folds=fold,
        mirror=False if no_mirror else None,
        fast=fast,
        precision=precision,
        memory_limit_gib=max_memory,
    )
    return {"stopped": True}
