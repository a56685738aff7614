"""Which network family suits a dataset, by stated rules from its fingerprint.

Published comparisons do not show one family ahead everywhere (nnU-Net's own benchmark finds hybrids with and without
their scans level), so the rules speak about structure size and memory only, and the default is kept otherwise. Whoever
wants to know trains two candidates on the same fold and compares them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medmamba.plans.fingerprint import Fingerprint
from medmamba.plans.grid import SMALL_VIEW
from medmamba.plans.schema import Configuration, Decision

DEFAULT = "vm_unet"

THIN_VOXELS = 6.0
"""Voxels: a structure whose typical component is a ball of a smaller diameter vanishes after two or three halvings."""

BASELINE_SEES = 2.0
"""The baseline is taken when, at the same memory, its patch is this many times larger and the scan sees too little."""


def typical_diameters(fingerprint: Fingerprint, spacing: Sequence[float]) -> dict[str, float]:
    """Median diameter in voxels of the target grid of each label's components, taken as balls (discs in flat data).

    ``spacing`` is the target spacing per canonical axis. Without component counts a label counts as one component.
    """
    diameters = {}
    for name, ids in fingerprint.cases_with.items():
        sizes = []
        for case in fingerprint.cases:
            if case.case_id in ids:
                components = max(case.label_components.get(name, 1), 1)
                scale = math.prod(case.rule_spacing) / math.prod(spacing)
                sizes.append((case.label_voxels[name] * scale / components, 1 in case.shape))
        if sizes:
            diameters[name] = float(np.median([_diameter(voxels, flat) for voxels, flat in sizes]))
    return diameters


def choose_network(
    fingerprint: Fingerprint,
    spacing: Sequence[float],
    scan_plan: Configuration,
    baseline_plan: Configuration,
) -> tuple[str, Decision]:
    """The family for a dataset; the two plans are those of vm_unet and plain_unet for the same memory."""
    diameters = typical_diameters(fingerprint, spacing)
    thinnest = min(diameters, key=lambda name: diameters[name]) if diameters else None
    median = math.prod(scan_plan.median_shape)
    scan_view = math.prod(scan_plan.patch_size) / median
    larger = math.prod(baseline_plan.patch_size) / math.prod(scan_plan.patch_size)
    if thinnest is not None and diameters[thinnest] < THIN_VOXELS:
        chosen = "hrvmamba"
        reason = (
            f"The typical component of {thinnest!r} is {diameters[thinnest]:.1f} voxels across and would vanish after "
            f"two or three halvings; this network keeps its fine branches to the end."
        )
    elif scan_view < SMALL_VIEW and larger >= BASELINE_SEES:
        chosen = "plain_unet"
        reason = (
            f"In this memory a scan network sees {scan_view:.1%} of the image and a plain U-Net {larger:.1f} times as "
            f"much: the context is worth more than the scan."
        )
    else:
        chosen = DEFAULT
        reason = "No structure is too thin for it and its patch sees enough of the image, so the default is kept."
    return chosen, Decision(
        name="network",
        value=chosen,
        inputs={
            "typical_diameter_voxels": {name: round(value, 2) for name, value in diameters.items()},
            "scan_patch_sees": round(scan_view, 4),
            "baseline_patch_larger": round(larger, 3),
        },
        rule=f"hrvmamba if a structure's typical component is under {THIN_VOXELS:g} voxels across; plain_unet if a "
        f"scan network's patch sees under {SMALL_VIEW:.0%} and the baseline's {BASELINE_SEES:g} times as much; else "
        f"{DEFAULT}",
        reason=reason,
        source="medmamba; no published comparison decides this",
    )


def _diameter(voxels: float, flat: bool) -> float:
    if flat:
        return 2 * math.sqrt(voxels / math.pi)
    return 2 * (3 * voxels / (4 * math.pi)) ** (1 / 3)
