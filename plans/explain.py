"""A plan in words: each decision with its rule, inputs and reason; and two plans side by side."""

import json
from collections.abc import Iterator
from typing import Any

from medmamba.plans.schema import Decision, Plan
from medmamba.plans.text_table import aligned


def explain_lines(plan: Plan) -> list[str]:
    """Lines of text that say what was decided and why."""
    lines = [
        f"Plan of {plan.dataset_name} (medmamba {plan.medmamba_version}), plan axes from image axes "
        + " ".join("ijk"[axis] for axis in plan.axis_order)
    ]
    for decision in plan.decisions:
        lines += _decision_lines(decision)
    for name, part in plan.configurations.items():
        mark = " (default)" if name == plan.default_configuration else ""
        after = f", after {part.previous_stage}" if part.previous_stage else ""
        lines += ["", f"Configuration {name}{mark}{after}: {part.network.name}"]
        for decision in part.decisions:
            lines += _decision_lines(decision)
    return lines


def summary(plan: Plan) -> list[tuple[str, ...]]:
    """A table of the configurations, header first: one row each, all cells text."""
    rows: list[tuple[str, ...]] = [
        ("configuration", "spacing (mm)", "median shape", "patch", "batch", "stages", "memory (GB)", "step (s)")
    ]
    for name, part in plan.configurations.items():
        spacing = "pixels" if part.spacing_mm is None else " x ".join(f"{value:.4g}" for value in part.spacing_mm)
        known = {decision.name: decision.value for decision in part.decisions}
        rows.append(
            (
                name + (" *" if name == plan.default_configuration else ""),
                spacing,
                " x ".join(f"{size:g}" for size in part.median_shape),
                " x ".join(str(size) for size in part.patch_size),
                str(part.batch_size),
                str(len(part.network.strides)),
                f"{known['training_memory_gb']:.2f}" if "training_memory_gb" in known else "",
                f"{known['step_seconds']:.2g}" if "step_seconds" in known else "",
            )
        )
    return rows


def summary_lines(plan: Plan, width: int | None = None) -> list[str]:
    """The table of :func:`summary` as aligned text of this width, and what the configurations are."""
    of_plan = ("configurations", "heads", "default_configuration")
    memory = [] if plan.options is None else [f"{plan.options.device_memory_gb:g} GB (--device-memory)"]
    return [
        *aligned(summary(plan), width),
        *(f"Device memory assumed: {text}." for text in memory),
        *(d.reason for name in of_plan for d in plan.decisions if d.name == name),
        *(d.reason for d in plan.default.decisions if d.name == "step_seconds"),
        *(d.reason for d in plan.default.decisions if d.name == "mirroring" and d.inputs["pairs"]),
        f"* is trained when no configuration is named: {plan.default.network.name}.",
    ]


def compare(before: Plan, after: Plan) -> list[tuple[str, str, str]]:
    """Every number that differs between two plans: (field, before, after); an absent one is written as a dash."""
    left, right = dict(_facts(before)), dict(_facts(after))
    rows = [(field, left.get(field, "–"), right.get(field, "–")) for field in {**left, **right}]
    return [row for row in rows if row[1] != row[2]]


def compare_lines(
    before: Plan, after: Plan, *, names: tuple[str, str] = ("now", "what if"), width: int | None = None
) -> list[str]:
    """The differences between two plans side by side, as aligned text of this width."""
    rows = compare(before, after)
    return aligned([("", *names), *rows], width) if rows else ["Both plans are the same."]


def _facts(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "axis_order", _text(plan.axis_order)
    yield "default_configuration", plan.default_configuration
    yield "left_right_pairs", _text(plan.left_right_pairs)
    for channel, normalization in zip(plan.channel_names, plan.normalization, strict=True):
        yield f"normalization[{channel}]", _text([normalization.scheme, normalization.use_mask])
    for name, part in plan.configurations.items():
        for field in ("spacing_mm", "median_shape", "patch_size", "batch_size", "batch_dice", "previous_stage"):
            yield f"{name}.{field}", _text(getattr(part, field))
        for field, value in part.network.model_dump(mode="json").items():
            yield f"{name}.network.{field}", _text(value)
        for decision in part.decisions:
            if decision.name in ("training_memory_gb", "step_seconds"):
                yield f"{name}.{decision.name}", _text(decision.value)


def _decision_lines(decision: Decision) -> list[str]:
    lines = [
        f"  {decision.name} = {_text(decision.value)}",
        f"    why:    {decision.reason}",
        f"    rule:   {decision.rule}",
    ]
    if decision.inputs:
        lines.append("    from:   " + ", ".join(f"{name} {_text(value)}" for name, value in decision.inputs.items()))
    lines.append(f"    source: {decision.source}")
    return lines


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
