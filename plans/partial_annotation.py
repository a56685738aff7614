"""Which kind of output a dataset needs: one softmax over its labels, or a head of its own for each structure."""

from __future__ import annotations

from collections.abc import Sequence

from medmamba.plans.fingerprint import Fingerprint
from medmamba.plans.schema import Decision


def partly_annotated(fingerprint: Fingerprint) -> list[str]:
    """Ids of the cases in which not every label was annotated."""
    labels = set(fingerprint.labels) - {"background"}
    return [
        case.case_id
        for case in fingerprint.cases
        if case.annotated_labels is not None and not labels <= set(case.annotated_labels)
    ]


def one_head_per_label(
    fingerprint: Fingerprint, partly: Sequence[str]
) -> tuple[dict[str, list[str]], list[str], Decision]:
    """Regions of one label each, for datasets in which some cases lack the annotation of some labels.

    In a softmax the voxels of a structure that was not annotated count as background, and the network learns to
    suppress it.
    With heads of their own, a label that was not annotated in a case leaves the loss of that case.
    """
    names = [name for name in fingerprint.labels if name != "background"]
    decision = Decision(
        name="heads",
        value="one sigmoid per label",
        inputs={"partly_annotated_cases": len(partly), "cases": len(fingerprint.cases), "first": partly[0]},
        rule="softmax over the labels; a head per label when cases lack the annotation of some",
        reason=(
            f"In {len(partly)} of {len(fingerprint.cases)} cases not every label was annotated, so each label has a "
            f"head of its own that learns from the cases in which it was."
        ),
        source="ours",
    )
    return {name: [name] for name in names}, names, decision
