"""Configurations that somebody added to a plan: kept when the dataset is planned anew; other edits are refused."""

from medmamba.errors import ConfigError
from medmamba.plans.options import PLANNED
from medmamba.plans.schema import Configuration, Decision, Plan


def edited_by_hand(configuration: Configuration) -> list[str]:
    """Fields whose value is not the one that the planner decided, as text: "patch_size is [..], decided was [..]"."""
    values = configuration.model_dump(mode="json") | configuration.network.model_dump(mode="json")
    del values["mirroring"]  # a record, of which the decision names the axes
    return [
        f"{made.name} is {values[made.name]}, decided was {made.value}"
        for made in configuration.decisions
        if made.name in values and made.value != values[made.name]
    ]


def manual_configurations(plan: Plan | None) -> list[str]:
    """Names of the configurations that the planner did not make."""
    return [] if plan is None else [name for name in plan.configurations if name not in PLANNED]


def keep_manual_configurations(new: Plan, old: Plan) -> Plan:
    """``new`` with the manual configurations of ``old``.

    Raises ConfigError if one of them no longer fits (other labels or axes, a previous stage that is gone), or if a
    planned configuration of ``old`` was edited under its own name, which planning anew would lose.
    """
    for name, part in old.configurations.items():
        if name in PLANNED and (changes := edited_by_hand(part)):
            raise ConfigError(
                f"configuration {name!r} was edited by hand ({changes[0]}); planning anew would lose that. Give it a "
                f"name of its own in the plan, for example {name + '_mine'!r}, or plan into another folder."
            )
    kept = {name: old.configurations[name] for name in manual_configurations(old)}
    if not kept:
        return new
    together = {**new.configurations, **kept}
    for name, part in kept.items():
        if (old.labels, old.channel_names) != (new.labels, new.channel_names):
            why = "was made for other labels or channels than this dataset has"
        elif old.axis_order != new.axis_order:
            why = f"was made for the axis order {old.axis_order}, the new plan has {new.axis_order}"
        elif part.previous_stage is not None and part.previous_stage not in together:
            why = f"follows {part.previous_stage!r}, which the new plan no longer has"
        else:
            continue
        raise ConfigError(f"configuration {name!r} {why}. Remove it from the old plan, or plan into another folder.")
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
