"""Choices by rule: the network family, the configuration that is trained, a head per label, normalisations.

Published comparisons do not show one family ahead everywhere (nnU-Net's own benchmark finds hybrids with and without
their scans level), so its rules speak about structure size and memory only, and the default is kept otherwise. Whoever
wants to know trains two candidates on the same fold and compares them.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from medmamba.errors import counted
from medmamba.plans.fingerprint import ChannelIntensity, Fingerprint
from medmamba.plans.grid import SMALL_VIEW
from medmamba.plans.normalizers import DEFAULT as DEFAULT_NORMALIZER
from medmamba.plans.normalizers import NORMALIZERS, normalizer_for
from medmamba.plans.patch import COVERAGE
from medmamba.plans.schema import Configuration, Decision, Normalization

DEFAULT = "vm_unet"

MASK_BELOW = 0.75
"""When cropping to non-zero leaves less than this fraction of the voxels (median case), the mask is used.
Source: nnU-Net."""

THIN_VOXELS = 6.0
"""Voxels: a structure whose typical component is a ball of a smaller diameter is lost after a few halvings."""

BASELINE_SEES = 2.0
"""The baseline is taken when, at the same memory, its patch is this many times larger and the scan sees too little."""


def typical_diameters(fingerprint: Fingerprint, spacing: Sequence[float]) -> dict[str, float]:
    """Median diameter in voxels of the target grid of each label's components, taken as balls (discs in flat data).

    ``spacing`` is the target spacing per canonical axis. Without component counts a label counts as one component.
    """
    diameters = {}
    for name in fingerprint.structures:
        sizes = []
        for case in (case for case in fingerprint.cases if name in case.present_labels):
            components = max(case.label_components.get(name, 1), 1)
            scale = math.prod(case.rule_spacing) / math.prod(spacing)
            voxels = case.label_voxels[name] * scale / components
            ball, disc = 2 * (3 * voxels / (4 * math.pi)) ** (1 / 3), 2 * math.sqrt(voxels / math.pi)
            sizes.append(disc if 1 in case.shape else ball)
        if sizes:
            diameters[name] = float(np.median(sizes))
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
    scan_view = math.prod(scan_plan.patch_size) / math.prod(scan_plan.median_shape)
    larger = math.prod(baseline_plan.patch_size) / math.prod(scan_plan.patch_size)
    if thinnest is not None and diameters[thinnest] < THIN_VOXELS:
        chosen = "hrvmamba"
        across = diameters[thinnest]
        halvings = counted(max(math.ceil(math.log2(across)), 0), "halving")
        reason = (
            f"The typical component of {thinnest!r} is {across:.1f} voxels across, a voxel or less after "
            f"{halvings}; this network keeps its fine branches to the end."
        )
    elif scan_view < SMALL_VIEW and larger >= BASELINE_SEES:
        chosen = "plain_unet"
        reason = (
            f"In this memory a scan network sees {scan_view:.1%} of the image and a plain U-Net {larger:.1f} times as "
            f"much: the context is worth more than the scan."
        )
    else:
        chosen = DEFAULT
        reason = (
            f"No structure is too thin for it; its patch sees {min(scan_view, 1):.1%} of the image and a plain U-Net's "
            f"{larger:.2g} times as much, so the default is kept."
        )
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


def choose_default(made: Mapping[str, Configuration], train_hours: float | None) -> tuple[str, list[Decision]]:
    """The configuration, and with a limit of hours the decision about it."""
    by_rule = next(name for name in ("3d_fullres", "2d", *made) if name in made)
    if train_hours is None:
        return by_rule, []
    sees = {
        name: min(math.prod(made[name].patch_size) / math.prod(made[name].median_shape), 1.0)
        for name in (by_rule, "2d")
        if name in made
    }
    known = next(decision for decision in made[by_rule].decisions if decision.name == "patch_size").inputs
    shortened = math.prod(known.get("patch_for_memory", [0])) > math.prod(made[by_rule].patch_size)
    seen = ", ".join(
        f"{name} {fraction:.0%} of its {'slice' if name == '2d' else 'image'}" for name, fraction in sees.items()
    )
    if not shortened:
        chosen, reason = by_rule, f"Enough steps of {by_rule} fit into the hours without a smaller patch."
    elif sees[by_rule] >= COVERAGE:
        chosen, reason = by_rule, f"The hours shorten its patch, which still sees enough: {seen}."
    elif sees.get("2d", 0.0) <= sees[by_rule]:
        chosen, reason = by_rule, f"The hours shorten its patch, and no 2D patch sees more: {seen}."
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


def one_head_per_label(fingerprint: Fingerprint) -> tuple[dict[str, list[str]] | None, list[Decision]]:
    """Regions of one label each for datasets in which some cases lack the annotation of some labels, else None.

    In a softmax the voxels of a structure that was not annotated count as background, and the network learns to
    suppress it. With heads of their own, a label that was not annotated in a case leaves the loss of that case.
    """
    names = fingerprint.structures
    partly = [
        case.case_id
        for case in fingerprint.cases
        if case.annotated_labels is not None and not set(names) <= set(case.annotated_labels)
    ]
    if not partly:
        return None, []
    decision = Decision(
        name="heads",
        value="one sigmoid per label",
        inputs={"partly_annotated_cases": len(partly), "cases": len(fingerprint.cases), "first": partly[0]},
        rule="softmax over the labels; a head per label when cases lack the annotation of some",
        reason=f"In {len(partly)} of {len(fingerprint.cases)} cases not every label was annotated, so each label has a "
        f"head of its own that learns from the cases in which it was.",
        source="ours",
    )
    return {name: [name] for name in names}, [decision]


def choose_normalization(fingerprint: Fingerprint) -> tuple[list[Normalization], list[Decision]]:
    """Normalisation of each channel, with one decision per channel."""
    relative_size = fingerprint.median_relative_size_after_cropping
    channels = zip(fingerprint.channel_names, fingerprint.intensities, strict=True)
    made = [channel_normalization(name, intensity, relative_size) for name, intensity in channels]
    return [chosen for chosen, _ in made], [decision for _, decision in made]


def channel_normalization(
    channel_name: str, intensity: ChannelIntensity, relative_size: float
) -> tuple[Normalization, Decision]:
    """Normalisation of one channel; ``relative_size`` is the median fraction of voxels left after cropping."""
    scheme = normalizer_for(channel_name)
    row = NORMALIZERS[scheme]
    use_mask = row.uses_mask and relative_size < MASK_BELOW
    reason, rule = row.reason, f"channel {row.channel_name!r}: {row.rule}"
    if scheme == DEFAULT_NORMALIZER:
        rule = f"every channel name that asks for no other: {row.rule}"
    if row.uses_mask:
        rule += f", inside the non-zero mask where cropping to it leaves under {MASK_BELOW:.0%} of the voxels"
    if use_mask:
        reason += (
            f" Cropping to non-zero leaves {relative_size:.0%} of the voxels: the background was removed, so the "
            f"statistics are taken inside the mask and the outside stays zero."
        )
    statistics = {name: getattr(intensity, name) for name in ("mean", "std", "percentile_00_5", "percentile_99_5")}
    return Normalization(scheme=scheme, use_mask=use_mask, **statistics), Decision(
        name=f"normalization[{channel_name}]",
        value={"scheme": scheme, "use_mask": use_mask},
        inputs={
            "channel": channel_name,
            "median_relative_size_after_cropping": relative_size,
            "foreground_mean": intensity.mean,
            "foreground_std": intensity.std,
        },
        rule=rule,
        reason=reason,
        source="nnU-Net 2.8.1, normalisation by channel name",
    )
