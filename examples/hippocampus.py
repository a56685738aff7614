"""The whole line on the hippocampus data: plan, train, predict, evaluate, report, and a MONAI Bundle.

python examples/hippocampus.py OUT --minutes 8
"""

from __future__ import annotations

import argparse
from pathlib import Path

import medmamba
from medmamba.datasets import read_dataset
from medmamba.demo import example_data
from medmamba.run_report.write import write_report
from medmamba.training.config import TrainConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", type=Path, default=example_data())
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--steps", type=int, help="end after so many steps at the latest")
    parser.add_argument("--export", action="store_true", help="also write OUT/bundle; needs the extra 'bundle'")
    options = parser.parse_args()
    run, masks = options.output / "run", options.output / "masks"

    plan = medmamba.plan(options.data, run)
    print(f"patch {plan.default.patch_size}, batch {plan.default.batch_size}, {plan.default.network.name}")

    # One of five folds: the other four fifths of the cases train, this one is held out.
    medmamba.train(run, fold=0, config=TrainConfig(max_minutes=options.minutes, steps=options.steps))

    predictor = medmamba.Predictor.from_run(run)
    dataset = read_dataset(options.data)
    masks.mkdir(parents=True, exist_ok=True)
    images = [case.images[0] for case in dataset.test]
    for image, result in zip(images, predictor.predict_many(images, on_error="record"), strict=True):
        if isinstance(result, medmamba.FailedPrediction):
            print(f"{image.name}: {result.reason}")
            continue
        result.save(masks / image.name)
        volumes = ", ".join(f"{name} {ml:.2f} ml" for name, ml in result.volumes_ml.items() if ml is not None)
        print(f"{image.name}: {result.status}, {volumes}")

    truths = [options.data / "labelsTs" / image.name for image in images]
    evaluation = medmamba.evaluate(masks, truths, output=options.output)
    print(f"mean Dice of {len(evaluation.cases)} test cases: {evaluation.mean_foreground:.4f}")
    write_report(run, cases=4)
    print(f"look at {run / 'report' / 'index.html'} and {options.output / 'evaluation.html'}")

    if options.export:
        from medmamba.bundle.options import BundleCard
        from medmamba.bundle.write import export_bundle

        card = BundleCard(
            licence="Apache-2.0", intended_use="Both parts of the hippocampus in T1 MR crops, for research."
        )
        report = export_bundle(run, options.output / "bundle", card, images[0], most_cases=1)
        print(f"{report.folder}: {report.cases[0].voxels} voxels equal")


if __name__ == "__main__":
    main()
