"""``medmamba info``."""

from __future__ import annotations

from typing import Annotated

import typer

from medmamba import pipeline
from medmamba.cli.answer import Answer
from medmamba.cli.console import console
from medmamba.command_options import InfoOptions


def info(network: Annotated[str, typer.Argument(help="Network.")], options: InfoOptions) -> Answer:
    """Print a network's options, parameters, multiply-accumulates and scan state updates, with four stages."""
    lines = pipeline.info(network, options)
    for line in lines:
        console.print(line, markup=False)
    return {"network": network, "lines": lines}
