"""A plan for one dataset with the decisions of another plan, so that a trained model fits and can be fine-tuned."""

from medmamba.errors import ConfigError
from medmamba.plans.fingerprint import Fingerprint
from medmamba.plans.options import PlanOptions, PlanRequest
from medmamba.plans.planner import DatasetFacts, make_plan
from medmamba.plans.schema import Decision, Plan

REPLACED = ("network", "spacing", "patch_size", "batch_size", "train_hours", "mirror", "pilot")
"""Options that replace a rule, which no rule of a plan taken over is."""


def refuse_with_like(options: PlanRequest) -> None:
    """Raises ConfigError for an option that a plan taken over cannot follow."""
    for name in REPLACED:
        if getattr(options, name) != PlanRequest.model_fields[name].default:
            raise ConfigError(
                f"{PlanRequest.flag(name)} with --like: the numbers are those of its plan. Leave one out."
            )


def refuse_other_labels(own: Plan, made: Plan, source: str) -> None:
    """Raises ConfigError where cases for the folds of a run have other labels than its plan."""
    for field in ("labels", "regions", "ignore_label"):
        ours, theirs = getattr(own, field), getattr(made, field)
        if ours != theirs:
            raise ConfigError(
                f"{source}: its {field.replace('_', ' ')} are {ours!s:.80}, those of the dataset {theirs!s:.80}. Give "
                "the dataset that its folds were trained with, or plan another run."
            )


def plan_like(other: Plan, fingerprint: Fingerprint, facts: DatasetFacts, source: str) -> Plan:
    """The plan of a dataset with grids, normalisation, networks and conventions of ``other``.

    Labels are the dataset's own. Raises ConfigError where the channels are not those of ``other``.
    """
    if (given := [name.lower() for name in fingerprint.channel_names]) != [
        name.lower() for name in other.channel_names
    ]:
        raise ConfigError(
            f"{source}: its channels are {', '.join(other.channel_names)}, those of the dataset "
            f"{', '.join(given)}. Name them alike, or plan without --like."
        )
    if fingerprint.has_millimetres != (other.default.spacing_mm is not None):
        raise ConfigError(f"{source}: one of it and the dataset has millimetres, the other not. Plan without --like.")
    own = make_plan(fingerprint, PlanOptions(network="plain_unet"), facts)
    taken = Decision(
        name="like",
        value=source,
        inputs={"plan": other.hash(), "dataset": other.dataset_name},
        rule="as in the other plan",
        reason="Grids, normalisation and networks are those of a trained model, which is to be fine-tuned.",
        source="--like",
    )
    return own.model_copy(
        update={
            "axis_order": other.axis_order,
            "normalization": other.normalization,
            "configurations": other.configurations,
            "default_configuration": other.default_configuration,
            "conventions": other.conventions,
            "reorient": other.reorient,
            "options": None,
            "decisions": [taken, *(one for one in own.decisions if one.name in ("heads", "left_right_pairs"))],
        }
    )
