"""The plan that other choices would have made of the same measured dataset; nothing is read or written."""

from __future__ import annotations

import shlex
from typing import Any

from medmamba.errors import ConfigError, InputError, unknown_name
from medmamba.plans.fingerprint import Fingerprint
from medmamba.plans.manual_configurations import manual_configurations
from medmamba.plans.options import PlanOptions
from medmamba.plans.planner import DatasetFacts, make_plan
from medmamba.plans.schema import Plan


def what_if(plan: Plan, fingerprint: Fingerprint, **changes: Any) -> Plan:
    """``plan`` made anew with some of its options changed; manual configurations stay.

    ``changes`` are fields of :class:`PlanOptions` by name. Raises ConfigError as make_plan does, and for a plan that
    was not made from this fingerprint.
    """
    if plan.fingerprint_hash != fingerprint.content_hash:
        raise ConfigError(
            "plan.json and fingerprint.json do not belong together, so nothing can be said about other choices. "
            "Run `medmamba plan` again."
        )
    derived = any(decision.name == "heads" for decision in plan.decisions)  # the planner's own regions
    facts = DatasetFacts(
        regions=None if derived else plan.regions,
        region_order=None if derived else plan.region_order,
        ignore_label=plan.ignore_label,
        file_ending=plan.file_ending,
        dataset_hash=plan.dataset_hash,
    )
    kept = plan.model_copy(
        update={"configurations": {name: plan.configurations[name] for name in manual_configurations(plan)}}
    )
    return make_plan(fingerprint, PlanOptions.of(plan.options, **changes), facts, previous=kept)


def changes_from(text: str) -> dict[str, Any]:
    """``"--device-memory 6GB --network mhs_vm"`` as changes by name, for :func:`what_if`.

    Raises InputError for a text that is not a list of options of ``medmamba plan`` with a value each.
    """
    name_of = {PlanOptions.flag(name): name for name in PlanOptions.model_fields}
    try:
        words = [part for word in shlex.split(text) for part in (word.split("=", 1) if "--" in word else [word])]
    except ValueError as error:
        raise InputError(f"--what-if {text!r} cannot be read ({error}). Write options of `medmamba plan`.") from error
    changes: dict[str, Any] = {}
    rest = iter(words)
    for flag in rest:
        if flag not in name_of:
            raise unknown_name("option of --what-if", flag, list(name_of))
        field = PlanOptions.model_fields[name_of[flag]]
        value = (not field.default) if field.annotation is bool else next(rest, None)  # --no-scan has no value
        if value is None:
            raise InputError(f"--what-if: {flag} has no value. Write for example --device-memory 6GB.")
        changes[name_of[flag]] = value
    if not changes:
        raise InputError('--what-if is empty. Write for example --what-if "--device-memory 6GB".')
    return changes
