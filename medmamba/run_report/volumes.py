"""The cases of a run's report for the viewer (pages/volume.py)."""

from typing import Any

from medmamba.pages.render import COLOURS, number
from medmamba.pages.volume import volume_of
from medmamba.plans.schema import Normalization, Plan
from medmamba.preprocessing.labels import label_names
from medmamba.run_report.cross_validation import ShownCase

WINDOWS = {
    "soft tissue": (400, 40),
    "liver": (150, 30),
    "lung": (1500, -600),
    "bone": (1800, 400),
    "brain": (80, 40),
    "angiography": (600, 300),
}
"""Width and level in Hounsfield units that are customary in radiology."""


def viewer_data(plan: Plan, shown: list[tuple[str, ShownCase]]) -> dict[str, Any]:
    """What the viewer needs, for a page; ``shown`` are cases with a word for each."""
    cases = [volume(kind, case, plan.normalization[0]) for kind, case in shown]
    ct = plan.normalization[0].scheme == "ct"
    low, high = (pick(case["range"][end] for case in cases) for end, pick in enumerate((min, max))) if cases else (0, 0)
    presets = [[name, *window] for name, window in WINDOWS.items() if ct and low < window[1] < high]
    names = label_names(plan)
    unit = "HU" if ct else ""
    return {"cases": cases, "names": names, "colours": COLOURS, "truth": True, "unit": unit, "presets": presets}


def volume(kind: str, case: ShownCase, normalization: Normalization) -> dict[str, Any]:
    """One case; of CT in Hounsfield units."""
    scale, shift = 1.0, 0.0
    if normalization.scheme == "ct":
        assert normalization.std is not None
        assert normalization.mean is not None
        scale, shift = normalization.std, normalization.mean
    title = f"{kind}: {case.score.case_id} (Dice {number(case.score.mean)})"
    return volume_of(title, case.display, case.image, case.prediction, truth=case.truth, scale=scale, shift=shift)
