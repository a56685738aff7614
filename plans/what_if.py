"""The plan that other choices would have made of the same measured dataset; nothing is read or written."""

from __future__ import annotations

from typing import Any

from medmamba.errors import ConfigError
from medmamba.plans.fingerprint import Fingerprint
from medmamba.plans.manual_configurations import handmade
from medmamba.plans.options import PlanOptions
from medmamba.plans.planner import make_plan
from medmamba.plans.schema import Plan


def what_if(plan: Plan, fingerprint: Fingerprint, **changes: Any) -> Plan:
    """``plan`` made anew with some of its options changed; hand-made configurations stay.

    ``changes`` are arguments of :func:`medmamba.plans.planner.make_plan` by name. Raises ConfigError as it does, and
    for a plan that was not made from this fingerprint.
    """
    if plan.fingerprint_hash != fingerprint.content_hash:
        raise ConfigError(
            "plan.json and fingerprint.json do not belong together, so nothing can be said about other choices. "
            "Run `medmamba plan` again."
        )
    derived = any(decision.name == "heads" for decision in plan.decisions)  # the planner's own regions
    kept = plan.model_copy(update={"configurations": {name: plan.configurations[name] for name in handmade(plan)}})
    options = (plan.options or PlanOptions()).model_copy(update=changes)
    return make_plan(
        fingerprint,
        **options.model_dump(),
        regions=None if derived else plan.regions,
        region_order=None if derived else plan.region_order,
        ignore_label=plan.ignore_label,
        file_ending=plan.file_ending,
        dataset_hash=plan.dataset_hash,
        previous=kept,
    )
