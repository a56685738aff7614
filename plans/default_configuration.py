"""Which configuration is trained when none is named."""

from __future__ import annotations

import math
from collections.abc import Mapping

from medmamba.plans.lowres import COVERAGE
from medmamba.plans.schema import Configuration, Decision


def choose_default(made: Mapping[str, Configuration], train_hours: float | None) -> tuple[str, list[Decision]]:
    """The configuration, and with a limit of hours the decision about it."""
    by_rule = next(name for name in ("3d_fullres", "2d", *made) if name in made)
    if train_hours is None:
        return by_rule, []
    sees = {name: _fraction(made[name]) for name in (by_rule, "2d") if name in made}
    seen = ", ".join(
        f"{name} {fraction:.0%} of its {'slice' if name == '2d' else 'image'}" for name, fraction in sees.items()
    )
    if not _shortened(made[by_rule]):
        chosen, reason = by_rule, f"Enough steps of {by_rule} fit into the hours without a smaller patch."
    elif sees[by_rule] >= COVERAGE or sees.get("2d", 0.0) <= sees[by_rule]:
        chosen, reason = by_rule, f"The hours shorten its patch, which still sees enough: {seen}."
    else:
        chosen, reason = "2d", f"The hours shorten the patch of {by_rule} too much: {seen}."
    return chosen, [
        Decision(
            name="default_configuration",
            value=chosen,
            inputs={
                "train_hours": train_hours,
                "patch_sees": {name: round(fraction, 4) for name, fraction in sees.items()},
            },
            rule=f"3d_fullres; 2d if the hours shorten the 3D patch to less than {COVERAGE:.0%} of the image, what "
            f"nnU-Net wants of a 3D patch, and the 2D patch sees more of its slice",
            reason=reason,
            source="medmamba; docs/benchmarks/accuracy.md, left ventricle",
        )
    ]


def _shortened(configuration: Configuration) -> bool:
    """Whether time left a smaller patch than memory did."""
    known = next(decision for decision in configuration.decisions if decision.name == "patch_size").inputs
    return math.prod(known.get("patch_for_memory", [0])) > math.prod(configuration.patch_size)


def _fraction(configuration: Configuration) -> float:
    return min(math.prod(configuration.patch_size) / math.prod(configuration.median_shape), 1.0)
