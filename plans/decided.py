"""What a plan decides about one configuration, apart from its reasons: equal decisions train and predict alike."""

from collections.abc import Iterator
from typing import Any

from medmamba.options import value_text
from medmamba.plans.schema import Plan

REASONS = ("medmamba_version", "fingerprint_hash", "options", "decisions", "configurations", "default_configuration")
"""Fields of a plan that no step after planning computes with; ``dataset_hash`` says which images were measured."""


def decided(plan: Plan, configuration: str) -> dict[str, Any]:
    """Every value that the configuration and its first stages follow, by the path of its field."""
    found = dict(_flat("", plan.model_dump(mode="json", exclude=set(REASONS))))
    stage: str | None = configuration
    while stage is not None and stage in plan.configurations:
        part = plan.configurations[stage]
        found |= _flat(stage, part.model_dump(mode="json", exclude={"decisions"}))
        stage = part.previous_stage
    return found


def changed_decisions(before: Plan, after: Plan, configuration: str) -> list[str]:
    """Each decision on a configuration that the plans make differently, as text; at most three of them."""
    if configuration not in after.configurations:
        return [f"{configuration} is not planned"]
    old, new = decided(before, configuration), decided(after, configuration)
    if before.reading.channel_files is None:  # of an earlier version, which did not decide it
        old["reading.channel_files"] = new["reading.channel_files"]
    changed = [field for field in {**old, **new} if old.get(field) != new.get(field)]
    told = [f"{field}: {value_text(old.get(field))} then, {value_text(new.get(field))} now" for field in changed]
    if "dataset_hash" in changed:
        told[changed.index("dataset_hash")] = "other images or label maps"
    return told[:3]


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values of nested objects by the path of their field; lists are values."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{path}.{key}" if path else key, inner)
    else:
        yield path, value
