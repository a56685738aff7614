"""Cell nuclei in colour pictures: 2D, three channels, masks as PNG.

    python examples/nuclei_rgb.py DATASET OUT

DATASET holds imagesTr/*.png (RGB), labelsTr/*.png (grey, the label's value in each pixel) and dataset.json with
"modality": {"0": "R", "1": "G", "2": "B"}. Pictures have no millimetres: nothing is resampled, and volumes are None.
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
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    run = options.output / "run"

    plan = medmamba.plan(options.dataset, run)
    assert plan.default.spacing_mm is None
    medmamba.train(run, fold=0, config=TrainConfig(max_minutes=options.minutes, steps=options.steps))

    picture = sorted((options.dataset / "imagesTr").glob("*.png"))[0]
    result = medmamba.Predictor.from_run(run).predict(picture)
    result.save(options.output / picture.name)  # a PNG of the picture's own size
    print(f"{picture.name}: {result.voxels} pixels, {result.status}")


if __name__ == "__main__":
    main()
