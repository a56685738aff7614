"""Lesions of multiple sclerosis in four MR sequences: channels of one image, small and scattered structures.

    python examples/ms_four_sequences.py DATASET OUT

The sequences stand in the fourth axis of each image (Decathlon), or in X_0000.nii.gz … X_0003.nii.gz (nnU-Net); a case
in which one is missing or lies on another grid is refused by name.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import medmamba
from medmamba.training.config import TrainConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    run = options.output / "run"

    plan = medmamba.plan(options.dataset, run)
    print(f"channels {', '.join(plan.channel_names)}")
    # Every lesion is drawn equally often, however small; focal loss keeps the easy background quiet.
    recipe = TrainConfig(
        max_minutes=options.minutes, steps=options.steps, sampling="lesion", loss="dice_focal", workers=0
    )
    medmamba.train(run, fold=0, config=recipe)

    image = sorted((options.dataset / "imagesTr").glob("*.nii.gz"))[0]
    result = medmamba.Predictor.from_run(run).predict(image)
    result.save(options.output / image.name)
    result.save_report(options.output / "report.html")
    print(f"{image.name}: {result.status}, {result.volumes_ml}")


if __name__ == "__main__":
    main()
