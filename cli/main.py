"""The ``medmamba`` application: its commands, and errors as lines with an exit code."""

import os
import re
import sys
from typing import Annotated, NoReturn

import typer

from medmamba.cli import prediction, training
from medmamba.cli.console import print_json, report_error
from medmamba.cli.from_record import JSON, from_records
from medmamba.cli.terminal import INTERRUPTED, end_on_signals, tolerate_lost_output
from medmamba.disk.atomic import cause_of
from medmamba.errors import InputError, MedmambaError, Terminated
from medmamba.version import __version__

app = typer.Typer(
    help="Medical image segmentation that configures itself, on Mamba networks.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
converting = typer.Typer(
    help="Convert datasets, nnU-Net plans and models, and published weights.", no_args_is_help=True
)
for command in (
    training.demo,
    training.plan,
    training.pretrain,
    training.train,
    prediction.predict,
    prediction.ensemble,
    prediction.reproduce,
    training.find_best,
    prediction.evaluate,
    training.report,
    training.explain,
    prediction.export,
    prediction.dicom_seg,
    prediction.serve,
    training.info,
    training.doctor,
):
    app.command()(from_records(command))
for conversion in (training.convert_dataset, training.convert_plans, training.convert_model, training.convert_weights):
    converting.command(conversion.__name__.removeprefix("convert_"))(from_records(conversion))
app.add_typer(converting, name="convert")


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


def _end(code: int, arguments: list[str], *lines: str) -> NoReturn:
    report_error(*lines)
    if JSON in arguments:
        print_json({"error": "\n".join(lines), "exit_code": code})
    sys.exit(code)


def run(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; exits with 0, 1 (some cases failed), 2, 4, 129, 130 or 143."""
    arguments = sys.argv[1:] if arguments is None else arguments
    tolerate_lost_output()
    end_on_signals()
    try:
        if any(not one or (one.startswith("--") and one.endswith("=")) for one in arguments):
            raise InputError("An argument is empty. If it is a variable of the shell, it is not set.")
        app(args=arguments, standalone_mode=True)
    except MedmambaError as error:
        if "--debug" in arguments:
            raise
        _end(error.exit_code, arguments, *map(str, error.args))
    except Terminated as ended:
        _end(int(ended.code or 0), arguments, f"Interrupted. {ended.advice}")
    except SystemExit as ended:  # raised by Typer on Ctrl-C
        if ended.code != INTERRUPTED:
            raise
        _end(INTERRUPTED, arguments, f"Interrupted. {Terminated.advice}")
    except KeyboardInterrupt:  # before or after the command itself
        _end(INTERRUPTED, arguments, f"Interrupted. {Terminated.advice}")
    except OSError as error:
        if "--debug" in arguments:
            raise
        if error.filename is not None and (cause := cause_of(error)) is not None:
            _end(4, arguments, f"{os.fsdecode(error.filename)}: {cause[0]}. {cause[1]}")
        _end(4, arguments, f"{error}. Check the limits and disks of this machine, then try again.")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("can't (allocate memory|start new thread)", str(error)):
            raise
        _end(4, arguments, "Out of memory. Close other programs, or choose a smaller --patch-size or --batch-size.")
