"""Short-axis cardiac MR: thick slices, and two phases of every patient that must not be torn apart.

    python examples/cardiac_by_patient.py DATASET OUT

Cases are called PATIENT_ED and PATIENT_ES. Were the two phases of a heart in different folds, validation would ask
about a heart that training had seen; group_by keeps them together.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import medmamba
from medmamba.models.run_folder import RunFolder
from medmamba.training.config import TrainConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    run = options.output / "run"

    plan = medmamba.plan(options.dataset, run, group_by="(.*)_E[DS]")
    for fold in RunFolder(run).read_splits():
        trained, held_out = ({case.rpartition("_")[0] for case in fold[part]} for part in ("train", "val"))
        assert not trained & held_out, "a patient is on both sides"
    print(f"spacing {plan.default.spacing_mm} mm, patch {plan.default.patch_size}: {plan.default_configuration}")
    medmamba.train(run, fold=0, config=TrainConfig(max_minutes=options.minutes, steps=options.steps))

    image = sorted((options.dataset / "imagesTr").glob("*.nii.gz"))[0]
    result = medmamba.Predictor.from_run(run).predict(image)
    result.save(options.output / image.name)
    print(f"{image.name}: {result.volumes_ml}")


if __name__ == "__main__":
    main()
