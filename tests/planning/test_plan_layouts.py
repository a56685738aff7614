"""Every real dataset, and the same one converted, plans without a hand-written option, to the same numbers."""

import json
import shutil
from pathlib import Path

import pytest

import medmamba
from medmamba.datasets import convert_dataset


def few_cases(source: Path, folder: Path, count: int) -> Path:
    """The first cases of a Decathlon folder as a dataset of its own."""
    description = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    pairs = description["training"][:count]
    description |= {"training": pairs, "numTraining": len(pairs), "test": [], "numTest": 0}
    for pair in pairs:
        for name in pair.values():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, folder / name)
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nuclei2018", "spleen_ct_sample", "cardiac_lv", "hippocampus", "ms_lesion"])
def test_a_real_dataset_and_its_conversion_plan_to_the_same_numbers(shared_data, tmp_path, name):
    folder = few_cases(shared_data / name, tmp_path / name, 1 if name == "ms_lesion" else 4)
    converted = convert_dataset(folder, tmp_path / "nnunet", "nnunet").folder
    back = convert_dataset(converted, tmp_path / "decathlon", "decathlon").folder
    sources = (folder, converted, back)
    first, *others = (medmamba.plan(source, tmp_path / f"run{n}") for n, source in enumerate(sources))
    for other in others:
        assert other.default_configuration == first.default_configuration
        assert other.default.patch_size == first.default.patch_size
        assert other.default.spacing_mm == first.default.spacing_mm
        assert other.default.batch_size == first.default.batch_size
