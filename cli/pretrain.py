"""``medmamba pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmamba.cli.answer import Answer


def pretrain(
    run: Annotated[Path, typer.Argument(help="Run folder written by `medmamba plan`; its labels are not used.")],
    images: Annotated[Path | None, typer.Option(help="Folder of further images without labels.")] = None,
    configuration: Annotated[str | None, typer.Option(help="Configuration of the plan, default: its default.")] = None,
    network: Annotated[str | None, typer.Option(help="Another network family on the same plan.")] = None,
    steps: Annotated[int | None, typer.Option(help="Length in steps; 5000 if no length is given.", min=1)] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Length in minutes.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Batch size instead of the plan's.", min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Initial rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, patches and masks.", min=0)] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that make batches; 0: none.", min=0)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Begin again.")] = False,
) -> Answer:
    """Learn from images without labels: hide key slices, draw them again; a start for `train --init`."""
    from medmamba.cli.console import clock, console, report_warnings
    from medmamba.cli.training_progress import training_progress
    from medmamba.training.config import make_config
    from medmamba.training.pretrain import pretrain as run_pretraining

    choices = {
        "steps": 5000 if steps is None and max_minutes is None else steps,
        "max_minutes": max_minutes,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "workers": workers,
        "device": device,
    }
    with training_progress() as on_step:
        result = run_pretraining(
            run,
            images=images,
            configuration=configuration,
            network=network,
            config=make_config(choices),
            resume=resume,
            restart=restart,
            on_step=on_step,
            on_event=lambda line: report_warnings([line]),
        )
    console.print(f"{result.steps} steps in {clock(result.seconds)}, last loss {result.final_loss:.4f}")
    console.print(f"Next: medmamba train {run} --init {result.folder}", markup=False)
    return {"model": result.folder, "steps": result.steps, "seconds": result.seconds, "loss": result.final_loss}
