"""Fingerprints for the planner's tests: the reference cases, and small ones made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medmamba.plans.fingerprint import PIXEL_SPACING, CaseStats, ChannelIntensity, Fingerprint, seal
from medmamba.plans.options import PlanOptions
from medmamba.plans.planner import make_plan
from medmamba.plans.schema import Plan

CASES = Path(__file__).parent.parent / "data" / "planner_cases"
DATASETS = sorted(path.stem for path in CASES.glob("*.json") if path.stem != "function_cases")

INTENSITY = ChannelIntensity(
    mean=100.0, median=99.0, std=30.0, min=0.0, max=400.0, percentile_00_5=10.0, percentile_99_5=250.0
)


def read(name: str) -> dict[str, Any]:
    return json.loads((CASES / f"{name}.json").read_text())


def case(
    case_id: str,
    shape: Sequence[int],
    spacing_mm: Sequence[float] | None = (1.0, 1.0, 1.0),
    shape_after_crop: Sequence[int] | None = None,
    **facts: Any,
) -> CaseStats:
    return CaseStats(
        case_id=case_id,
        shape=tuple(shape),
        spacing_mm=None if spacing_mm is None else tuple(spacing_mm),
        orientation=None,
        shape_after_crop=tuple(shape_after_crop or shape),
        label_voxels=facts.pop("label_voxels", {"background": 90, "organ": 10}),
        **facts,
    )


def fingerprint(cases: Sequence[CaseStats], channels: Sequence[str] = ("MRI",), **facts: Any) -> Fingerprint:
    return seal(
        Fingerprint(
            dataset_name=facts.pop("dataset_name", "by_hand"),
            channel_names=list(channels),
            labels=facts.pop("labels", {"background": 0, "organ": 1}),
            cases=list(cases),
            intensities=[INTENSITY for _ in channels],
            median_relative_size_after_cropping=facts.pop("relative_size", 1.0),
        )
    )


def plan_of(images: Fingerprint, previous: Plan | None = None, **choices: Any) -> Plan:
    """The plan of ``images`` with some choices by name."""
    return make_plan(images, PlanOptions.of(**choices), previous=previous)


def volumes(count: int, shape: Sequence[int], spacing_mm: Sequence[float] | None = (1.0, 1.0, 1.0)) -> Fingerprint:
    return fingerprint([case(f"case_{number:03}", shape, spacing_mm) for number in range(count)])


def reference_fingerprint(name: str) -> Fingerprint:
    """The fingerprint of a reference case as ours: regions become labels, (999, 1, 1) becomes "no millimetres"."""
    document = read(name)
    dataset, given = document["dataset"], document["fingerprint"]
    channels = [dataset["channel_names"][key] for key in sorted(dataset["channel_names"], key=int)]
    cases = [
        case(f"case_{number:03}", shape, None if tuple(spacing) == PIXEL_SPACING else spacing)
        for number, (shape, spacing) in enumerate(zip(given["shapes_after_crop"], given["spacings"], strict=True))
    ]
    labels = {label: value if isinstance(value, int) else value[0] for label, value in dataset["labels"].items()}
    statistics = given["foreground_intensity_properties_per_channel"]
    return seal(
        Fingerprint(
            dataset_name=name,
            channel_names=channels,
            labels=labels,
            cases=cases,
            intensities=[ChannelIntensity(**statistics[str(number)]) for number in range(len(channels))],
            median_relative_size_after_cropping=given["median_relative_size_after_cropping"],
        )
    )
