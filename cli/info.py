"""``medmamba info``."""

from __future__ import annotations

from typing import Annotated

import typer

from medmamba import pipeline
from medmamba.cli.answer import Answer
from medmamba.cli.console import console
from medmamba.verb_options import InfoOptions


def info(network: Annotated[str, typer.Argument(help="Network family.")], options: InfoOptions) -> Answer:
    """What a network is and what it costs at four stages: parameters, multiply-accumulates, scan steps."""
    lines = pipeline.info(network, options)
    for line in lines:
        console.print(line, markup=False)
    return {"network": network, "lines": lines}
