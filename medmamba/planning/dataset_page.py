"""RUN/report/dataset.html: the fingerprint, slices of cases, warnings, and the plan with its reasons, in one file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medmamba.pages.picture import Picture
from medmamba.pages.render import render
from medmamba.plans.explain import summary
from medmamba.plans.fingerprint import Fingerprint
from medmamba.plans.folds import Fold
from medmamba.plans.schema import Plan

BINS = 20
MOST_WARNINGS = 200


@dataclass(frozen=True)
class Chart:
    """A histogram between two values; without ``counts`` the ``note`` is the one value of all cases."""

    title: str
    note: str
    counts: Sequence[int] = ()
    low: float = 0.0
    high: float = 0.0


def dataset_page(
    plan: Plan,
    fingerprint: Fingerprint,
    folds: Sequence[Fold],
    warnings: Sequence[str],
    pictures: Mapping[str, Picture],
) -> str:
    """The page as HTML; ``pictures`` are those of some cases by case id."""
    return render(
        "dataset.html",
        plan=plan,
        fingerprint=fingerprint,
        facts=_facts(plan, fingerprint),
        warnings=list(warnings),
        most_warnings=MOST_WARNINGS,
        summary=summary(plan),
        reasons=_main_reasons(plan),
        unit=_unit(fingerprint),
        labels=list(_labels(fingerprint)),
        pictures=pictures,
        charts=list(_charts(fingerprint)),
        folds=_folds(fingerprint, folds),
        cases=list(_cases(fingerprint)),
    )


def histogram(values: Sequence[float], title: str, unit: str) -> Chart:
    """How often values occur, with the median below; one number where all cases have the same."""
    data = np.asarray(values, dtype=np.float64)
    low, high = float(data.min()), float(data.max())
    if low == high:
        return Chart(title, f"{low:.4g} {unit}")
    return Chart(title, f"median {np.median(data):.4g} {unit}", np.histogram(data, bins=BINS)[0].tolist(), low, high)


def _facts(plan: Plan, fingerprint: Fingerprint) -> list[tuple[str, str]]:
    codes = sorted({case.orientation or "none" for case in fingerprint.cases})
    return [
        ("cases", str(len(fingerprint.cases))),
        ("channels", ", ".join(fingerprint.channel_names)),
        ("stored orientations", ", ".join(codes)),
        ("cases without foreground", ", ".join(c.case_id for c in fingerprint.cases if not c.present_labels) or "none"),
        ("planned with", f"medmamba {plan.medmamba_version}"),
        ("fingerprint", fingerprint.content_hash[:16]),
    ]


def _unit(fingerprint: Fingerprint) -> str:
    return "ml" if fingerprint.has_millimetres else "voxels"


def _main_reasons(plan: Plan) -> list[str]:
    """What a reader asks first: which spacing, which configurations, which patch, and how much memory and time."""
    wanted = {"target_spacing", "configurations", "default_configuration", "network", "heads"}
    wanted |= {"left_right_pairs", "hand_made"}
    of_default = {"patch_size", "batch_size", "training_memory_gb", "step_seconds"}
    found = [decision.reason for decision in plan.decisions if decision.name in wanted]
    return found + [f"{plan.default.name}: {d.reason}" for d in plan.default.decisions if d.name in of_default]


def _labels(fingerprint: Fingerprint) -> Iterator[list[str]]:
    for name in fingerprint.structures:
        sizes = _volumes(fingerprint, name)
        components = [case.label_components[name] for case in fingerprint.cases if name in case.label_components]
        numbers = [f"{value:.4g}" for value in (np.median(sizes), min(sizes), max(sizes))] if sizes else ["–"] * 3
        yield [
            name,
            str(fingerprint.labels[name]),
            f"{len(sizes)} of {len(fingerprint.cases)}",
            *numbers,
            f"{np.median(components):g}" if components else "–",
        ]


def _volumes(fingerprint: Fingerprint, name: str) -> list[float]:
    """Volume of a label in the cases that have it, in ml, or in voxels without millimetres."""
    return [
        float(case.volume_ml[name] if case.volume_ml is not None else case.label_voxels[name])
        for case in fingerprint.cases
        if case.label_voxels.get(name)
    ]


def _charts(fingerprint: Fingerprint) -> Iterator[Chart]:
    for axis, letter in enumerate("ijk"):
        yield histogram([case.shape[axis] for case in fingerprint.cases], f"size along {letter}", "voxels")
    views = [view for case in fingerprint.cases if (view := case.field_of_view_mm) is not None]
    if views:
        for axis, letter in enumerate("ijk"):
            spacings = [case.spacing_mm[axis] for case in fingerprint.cases if case.spacing_mm is not None]
            yield histogram(spacings, f"spacing along {letter}", "mm")
        for axis, letter in enumerate("ijk"):
            yield histogram([view[axis] for view in views], f"field of view along {letter}", "mm")
    for name, known in zip(fingerprint.channel_names, fingerprint.intensities, strict=True):
        if known.histogram:
            note = f"mean {known.mean:.4g}, std {known.std:.4g}"
            title = f"foreground intensity of {name}, percentiles 0.5 to 99.5"
            yield Chart(title, note, known.histogram, known.percentile_00_5, known.percentile_99_5)
    for name in fingerprint.structures:
        if sizes := _volumes(fingerprint, name):
            yield histogram(sizes, f"volume of {name}", _unit(fingerprint))


def _folds(fingerprint: Fingerprint, folds: Sequence[Fold]) -> list[list[str]]:
    present = {case.case_id: set(case.present_labels) for case in fingerprint.cases}
    names = fingerprint.structures
    rows = [["fold", "training", "validation", *(f"with {name}" for name in names)]]
    for number, fold in enumerate(folds):
        of_label = [str(sum(name in present.get(case, ()) for case in fold["val"])) for name in names]
        rows.append([str(number), str(len(fold["train"])), str(len(fold["val"])), *of_label])
    return rows


def _cases(fingerprint: Fingerprint) -> Iterator[list[str]]:
    for case in fingerprint.cases:
        spacing = "–" if case.spacing_mm is None else " x ".join(f"{value:.4g}" for value in case.spacing_mm)
        size = " x ".join(map(str, case.shape))
        yield [case.case_id, size, spacing, case.orientation or "–", ", ".join(case.present_labels) or "none"]


def spread_over(case_ids: Sequence[str], most: int) -> list[str]:
    """At most ``most`` of the cases, evenly spaced, the first and the last among them."""
    places = np.linspace(0, len(case_ids) - 1, min(most, len(case_ids))).round()
    return [case_ids[int(place)] for place in places]
