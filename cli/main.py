"""The ``medmamba`` application: its commands, and errors as lines with an exit code."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from medmamba.cli import (
    convert,
    demo,
    dicom_seg,
    doctor,
    evaluate,
    explain,
    export,
    find_best,
    info,
    plan,
    predict,
    pretrain,
    report,
    serve,
    train,
)
from medmamba.cli.answer import FLAG, answering, show
from medmamba.cli.console import report_error
from medmamba.cli.from_record import from_records
from medmamba.errors import MedmambaError
from medmamba.version import __version__

INTERRUPTED = 130
TERMINATED = 143
RESUMABLE = ("train", "pretrain", "predict")
"""Commands that can be resumed where they were interrupted."""

app = typer.Typer(
    help="Medical image segmentation that configures itself, on Mamba networks.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    demo.demo,
    plan.plan,
    pretrain.pretrain,
    train.train,
    predict.predict,
    predict.reproduce,
    find_best.find_best,
    evaluate.evaluate,
    report.report,
    explain.explain,
    export.export,
    dicom_seg.dicom_seg,
    serve.serve,
    info.info,
    doctor.doctor,
):
    app.command()(answering(from_records(command)))
app.add_typer(convert.convert, name="convert")


def _terminate(number: int, frame: FrameType | None) -> None:
    """SIGTERM unwinds like an interrupt, so that training saves a checkpoint; a second one ends at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise SystemExit(TERMINATED)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medmamba {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of every command."""


def _end(message: str, code: int, arguments: list[str]) -> NoReturn:
    report_error(message)
    if FLAG in arguments:
        show({"error": message, "exit_code": code})
    sys.exit(code)


def run(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; exits with 0, 1 (some cases failed), 2, 4, 130 or 143."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(args=arguments, standalone_mode=True)
    except MedmambaError as error:
        if "--debug" in arguments:
            raise
        _end(str(error), error.exit_code, arguments)
    except SystemExit as ended:  # Typer makes this of Ctrl-C too
        if not isinstance(ended.code, int) or ended.code not in (INTERRUPTED, TERMINATED):
            raise
        resumable = [name for name in RESUMABLE if name in arguments]
        further = f"; `medmamba {resumable[0]}` resumes with --resume" if resumable else ""
        _end(f"Interrupted. What was written is complete{further}.", ended.code, arguments)
    except MemoryError:
        _end("Out of memory. Close other programs, or choose a smaller --patch-size or --batch-size.", 4, arguments)
