"""Configurations that somebody added to a plan: kept when the dataset is planned anew; other edits are refused."""

from __future__ import annotations

from medmamba.errors import ConfigError
from medmamba.plans.options import PLANNED
from medmamba.plans.schema import Configuration, Decision, Plan

_CHECKED = ("median_shape", "patch_size", "batch_size", "batch_dice")
_CHECKED_NETWORK = (
    "stem",
    "strides",
    "kernel_sizes",
    "features_per_stage",
    "blocks_per_stage",
    "deep_supervision",
    "routes",
    "state_size",
    "use_scan",
)


def edited_by_hand(configuration: Configuration) -> list[str]:
    """Fields whose value is not the one that the planner decided, as text: "patch_size is [..], decided was [..]"."""
    decided = {decision.name: decision.value for decision in configuration.decisions}
    network = configuration.network
    values = {name: getattr(configuration, name) for name in _CHECKED}
    values |= {name: getattr(network, name) for name in _CHECKED_NETWORK}
    return [
        f"{name} is {values[name]}, decided was {decided[name]}"
        for name in values
        if name in decided and decided[name] != values[name]
    ]


def manual_configurations(plan: Plan | None) -> list[str]:
    """Names of the configurations that the planner did not make."""
    return [] if plan is None else [name for name in plan.configurations if name not in PLANNED]


def keep_manual_configurations(new: Plan, old: Plan) -> Plan:
    """``new`` with the manual configurations of ``old``.

    Raises ConfigError if one of them no longer fits (other labels or axes, a previous stage that is gone), or if a
    planned configuration of ``old`` was edited under its own name, which planning anew would lose.
    """

    def misfit(name: str, why: str) -> ConfigError:
        remedy = "Remove it from the old plan, or plan into another folder."
        return ConfigError(f"configuration {name!r} {why}. {remedy}")

    for name, part in old.configurations.items():
        if name in PLANNED and (changes := edited_by_hand(part)):
            raise ConfigError(
                f"configuration {name!r} was edited by hand ({changes[0]}); planning anew would lose that. Give it a "
                f"name of its own in the plan, for example {name + '_mine'!r}, or plan into another folder."
            )
    kept = {name: old.configurations[name] for name in manual_configurations(old)}
    if not kept:
        return new
    if (old.labels, old.channel_names) != (new.labels, new.channel_names):
        raise misfit(next(iter(kept)), "was made for other labels or channels than this dataset has")
    if old.axis_order != new.axis_order:
        why = f"was made for the axis order {old.axis_order}, the new plan has {new.axis_order}"
        raise misfit(next(iter(kept)), why)
    together = {**new.configurations, **kept}
    for name, part in kept.items():
        if part.previous_stage is not None and part.previous_stage not in together:
            raise misfit(name, f"follows {part.previous_stage!r}, which the new plan no longer has")
    decision = Decision(
        name="hand_made",
        value=list(kept),
        inputs={},
        rule="configurations under names of their own are carried over unchanged",
        reason="Made manually; planning anew does not change them.",
        source="user",
    )
    default = old.default_configuration if old.default_configuration in kept else new.default_configuration
    return new.model_copy(
        update={
            "configurations": together,
            "default_configuration": default,
            "decisions": [*new.decisions, decision],
        }
    )
