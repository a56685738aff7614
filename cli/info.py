"""``medmamba info``."""

from __future__ import annotations

from typing import Annotated

import typer

from medmamba.cli.answer import Answer


def info(
    network: Annotated[str, typer.Argument(help="Network family.")],
    dims: Annotated[int, typer.Option(help="2 or 3 spatial dimensions.", min=2, max=3)] = 3,
    size: Annotated[int, typer.Option(help="Edge of the patch in voxels, a multiple of 8.", min=16)] = 64,
) -> Answer:
    """What a network is and what it costs at four stages: parameters, products, scan steps."""
    from medmamba.cli.console import console
    from medmamba.models.network import describe_network

    lines = list(describe_network(network, spatial_dims=dims, size=size))
    for line in lines:
        console.print(line, markup=False)
    return {"network": network, "lines": lines}
