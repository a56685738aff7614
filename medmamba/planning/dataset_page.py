"""RUN/report/dataset.html: what was measured, what was odd, what was planned and why; it needs no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

import numpy as np

from medmamba.planning.contact_sheet import COLOURS, Thumbnail
from medmamba.plans.explain import summary
from medmamba.plans.fingerprint import Fingerprint
from medmamba.plans.folds import Fold
from medmamba.plans.schema import Decision, Plan

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:64em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0}td,th{padding:.15em .8em;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}.row{display:flex;flex-wrap:wrap;gap:1em}
figure{margin:0}figcaption{font-size:12px;color:#555;max-width:200px;overflow-wrap:anywhere}
svg text{font:11px system-ui,sans-serif;fill:#555}.sheet img{background:#000;display:block}
.note{background:#fff6dd;padding:.2em .8em;border-left:3px solid #ffb000;margin:.3em 0;overflow-wrap:anywhere}
dt{margin-top:.6em}dd{margin:0 0 0 1.5em}code{background:#f4f4f4}.key{display:inline-block;width:.9em;height:.9em;
border:1px solid #999;vertical-align:-.1em}summary{cursor:pointer;margin:.5em 0}"""

BINS = 20
MOST_WARNINGS = 200


def dataset_page(
    plan: Plan,
    fingerprint: Fingerprint,
    folds: Sequence[Fold],
    warnings: Sequence[str],
    pictures: Mapping[str, Thumbnail],
) -> str:
    """The page as HTML; ``pictures`` are those of some cases by case id."""
    title = f"Dataset {fingerprint.dataset_name}"
    parts = [
        f"<h1>{_safe(title)}</h1>",
        _facts(plan, fingerprint),
        _warnings(warnings),
        "<h2>Plan</h2>",
        _table(summary(plan)),
        "".join(f"<p>{_safe(reason)}</p>" for reason in _main_reasons(plan)),
        "<h2>Labels</h2>",
        _labels(fingerprint),
        "<h2>Cases</h2>",
        _sheet(pictures, fingerprint),
        "<h2>Measures</h2>",
        f'<div class="row">{"".join(_histograms(fingerprint))}</div>',
        "<h2>Folds</h2>",
        _folds(fingerprint, folds),
        "<h2>Every decision</h2>",
        _decisions("All configurations", plan.decisions),
        *(_decisions(f"Configuration {name}", part.decisions) for name, part in plan.configurations.items()),
        "<h2>Every case</h2>",
        _cases(fingerprint),
    ]
    head = f'<meta charset="utf-8"><title>{_safe(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def histogram(values: Sequence[float], title: str, unit: str) -> str:
    """Bars of how often a value occurs, as SVG, with the median below; one number where all cases have the same."""
    data = np.asarray(values, dtype=np.float64)
    low, high = float(data.min()), float(data.max())
    if low == high:
        return f"<figure><b>{low:.4g} {_safe(unit)}</b><figcaption>{_safe(title)}, in all cases</figcaption></figure>"
    return bars(np.histogram(data, bins=BINS)[0].tolist(), title, low, high, f"median {np.median(data):.4g} {unit}")


def bars(counts: Sequence[int], title: str, low: float, high: float, remark: str) -> str:
    """Equal bars between two values, as SVG."""
    width, height, tallest = 240, 90, max(*counts, 1)
    step = width / len(counts)
    drawn = "".join(
        f'<rect x="{number * step:.1f}" y="{height * (1 - count / tallest):.1f}" width="{max(step - 1, 1):.1f}" '
        f'height="{height * count / tallest:.1f}" fill="#648fff"><title>{count}</title></rect>'
        for number, count in enumerate(counts)
    )
    return (
        f'<figure><svg width="{width}" height="{height + 34}" role="img" aria-label="{_safe(title)}">{drawn}'
        f'<line x1="0" x2="{width}" y1="{height}" y2="{height}" stroke="#999"/>'
        f'<text x="0" y="{height + 14}">{low:.4g}</text>'
        f'<text x="{width}" y="{height + 14}" text-anchor="end">{high:.4g}</text>'
        f'<text x="0" y="{height + 30}">{_safe(remark)}</text></svg>'
        f"<figcaption>{_safe(title)}</figcaption></figure>"
    )


def _facts(plan: Plan, fingerprint: Fingerprint) -> str:
    codes = sorted({case.orientation or "none" for case in fingerprint.cases})
    rows = [
        ("cases", str(len(fingerprint.cases))),
        ("channels", ", ".join(fingerprint.channel_names)),
        ("stored orientations", ", ".join(codes)),
        ("cases without foreground", ", ".join(fingerprint.empty_cases) or "none"),
        ("planned with", f"medmamba {plan.medmamba_version}"),
        ("fingerprint", fingerprint.content_hash[:16]),
    ]
    return _table([("", ""), *rows])


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return "<h2>Warnings</h2><p>None: every file, header, voxel and label was checked.</p>"
    shown = "".join(f'<p class="note">{_safe(line)}</p>' for line in warnings[:MOST_WARNINGS])
    rest = f"<p>{len(warnings) - MOST_WARNINGS} more.</p>" if len(warnings) > MOST_WARNINGS else ""
    return f"<h2>Warnings ({len(warnings)})</h2>{shown}{rest}"


def _main_reasons(plan: Plan) -> list[str]:
    """What a reader asks first: which spacing, which configurations, which patch, and how much memory and time."""
    wanted = (
        "target_spacing",
        "configurations",
        "default_configuration",
        "network",
        "heads",
        "left_right_pairs",
        "hand_made",
    )
    found = [decision.reason for decision in plan.decisions if decision.name in wanted]
    of_default = [d.reason for d in plan.default.decisions if d.name in ("patch_size", "batch_size")]
    costs = [d.reason for d in plan.default.decisions if d.name in ("training_memory_gb", "step_seconds")]
    return [*found, *(f"{plan.default.name}: {reason}" for reason in [*of_default, *costs])]


def _labels(fingerprint: Fingerprint) -> str:
    unit = "ml" if fingerprint.has_millimetres else "voxels"
    rows: list[tuple[str, ...]] = [
        ("label", "value", "cases", f"median volume ({unit})", "smallest", "largest", "components, median")
    ]
    names = [name for name in fingerprint.labels if name != "background"]
    for number, name in enumerate(names):
        sizes = _volumes(fingerprint, name)
        pieces = [case.label_components[name] for case in fingerprint.cases if name in case.label_components]
        numbers = [f"{value:.4g}" for value in (np.median(sizes), min(sizes), max(sizes))] if sizes else ["–"] * 3
        key = f'<span class="key" style="background:{COLOURS[number % len(COLOURS)]}"></span> '
        rows.append(
            (
                key + _safe(name),
                str(fingerprint.labels[name]),
                f"{len(sizes)} of {len(fingerprint.cases)}",
                *numbers,
                f"{np.median(pieces):g}" if pieces else "–",
            )
        )
    return _table(rows, safe_first=True)


def _volumes(fingerprint: Fingerprint, name: str) -> list[float]:
    """Volume of a label in the cases that have it, in ml, or in voxels without millimetres."""
    return [
        float(case.volume_ml[name] if case.volume_ml is not None else case.label_voxels[name])
        for case in fingerprint.cases
        if case.label_voxels.get(name)
    ]


def _histograms(fingerprint: Fingerprint) -> list[str]:
    drawn = []
    for axis, letter in enumerate("ijk"):
        drawn.append(histogram([case.shape[axis] for case in fingerprint.cases], f"size along {letter}", "voxels"))
    views = [view for case in fingerprint.cases if (view := case.field_of_view_mm) is not None]
    if views:
        for axis, letter in enumerate("ijk"):
            spacings = [case.spacing_mm[axis] for case in fingerprint.cases if case.spacing_mm is not None]
            drawn.append(histogram(spacings, f"spacing along {letter}", "mm"))
        for axis, letter in enumerate("ijk"):
            drawn.append(histogram([view[axis] for view in views], f"field of view along {letter}", "mm"))
    for name, known in zip(fingerprint.channel_names, fingerprint.intensities, strict=True):
        if known.histogram:
            remark = f"mean {known.mean:.4g}, std {known.std:.4g}"
            title = f"foreground intensity of {name}, percentiles 0.5 to 99.5"
            drawn.append(bars(known.histogram, title, known.percentile_00_5, known.percentile_99_5, remark))
    unit = "ml" if fingerprint.has_millimetres else "voxels"
    for name in fingerprint.labels:
        if name != "background" and (sizes := _volumes(fingerprint, name)):
            drawn.append(histogram(sizes, f"volume of {name}", unit))
    return drawn


def _sheet(pictures: Mapping[str, Thumbnail], fingerprint: Fingerprint) -> str:
    if not pictures:
        return ""
    figures = []
    for case_id, found in pictures.items():
        code = base64.b64encode(found.png).decode()
        figures.append(
            f'<figure><img alt="{_safe(case_id)}" src="data:image/png;base64,{code}">'
            f"<figcaption>{_safe(case_id)}, slice {found.slice_number} of {found.slices}</figcaption></figure>"
        )
    count = len(fingerprint.cases)
    told = f"{len(pictures)} of {count} cases on the plan's grid, each the slice with most of the labels, outlined."
    return f'<p>{told}</p><div class="row sheet">{"".join(figures)}</div>'


def _folds(fingerprint: Fingerprint, folds: Sequence[Fold]) -> str:
    present = {case.case_id: set(case.present_labels) for case in fingerprint.cases}
    names = [name for name in fingerprint.labels if name != "background"]
    rows: list[tuple[str, ...]] = [("fold", "training", "validation", *(f"with {name}" for name in names))]
    for number, fold in enumerate(folds):
        of_label = [str(sum(name in present.get(case, ()) for case in fold["val"])) for name in names]
        rows.append((str(number), str(len(fold["train"])), str(len(fold["val"])), *of_label))
    return _table(rows)


def _decisions(title: str, decisions: Sequence[Decision]) -> str:
    entries = "".join(
        f"<dt><b>{_safe(decision.name)}</b> = <code>{_safe(_value(decision.value))}</code></dt>"
        f"<dd>{_safe(decision.reason)}</dd><dd>Rule: {_safe(decision.rule)}. Source: {_safe(decision.source)}.</dd>"
        for decision in decisions
    )
    return f"<details><summary>{_safe(title)}</summary><dl>{entries}</dl></details>"


def _cases(fingerprint: Fingerprint) -> str:
    rows: list[tuple[str, ...]] = [("case", "size", "spacing (mm)", "orientation", "labels")]
    for case in fingerprint.cases:
        spacing = "–" if case.spacing_mm is None else " x ".join(f"{value:.4g}" for value in case.spacing_mm)
        size = " x ".join(map(str, case.shape))
        rows.append((case.case_id, size, spacing, case.orientation or "–", ", ".join(case.present_labels) or "none"))
    return f"<details><summary>{len(fingerprint.cases)} cases</summary>{_table(rows)}</details>"


def _table(rows: Sequence[Sequence[str]], *, safe_first: bool = False) -> str:
    """A table with its header first; with ``safe_first`` the first column is HTML already."""

    def cell(tag: str, column: int, text: str) -> str:
        return f"<{tag}>{text if safe_first and column == 0 else _safe(text)}</{tag}>"

    lines = [
        "<tr>" + "".join(cell("td" if number else "th", column, text) for column, text in enumerate(row)) + "</tr>"
        for number, row in enumerate(rows)
    ]
    return f"<table>{''.join(lines)}</table>"


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "[" + ", ".join(_value(item) for item in value) + "]" if isinstance(value, list) else str(value)


def _safe(text: str) -> str:
    return html.escape("".join(char if char.isprintable() else repr(char)[1:-1] for char in text))
