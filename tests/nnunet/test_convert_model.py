"""Trained nnU-Net models become runs whose masks are nnU-Net's own; what cannot be converted leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from their_folder import checkpoint, plans, write_results

from medmamba import Predictor
from medmamba.disk.atomic import write_json
from medmamba.errors import InputError
from medmamba.images import read_label_map
from medmamba.models.checkpoint import file_sha256, read_state
from medmamba.models.run_folder import read_plan
from medmamba.nnunet.convert import convert_model

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "nnunet_models"
MODELS = {
    "coarse": ("Dataset601_coarse", "nnUNetTrainer__plainPlans__3d_fullres"),
    "coarse_2d": ("Dataset601_coarse", "nnUNetTrainerNoMirroring__plainPlans__2d"),
    "regions": ("Dataset602_regions", "nnUNetTrainer__resencPlans__3d_fullres"),
    "photo": ("Dataset603_photo", "nnUNetTrainer__plainPlans__2d"),
    "lowres": ("Dataset604_stages", "nnUNetTrainer__plainPlans__3d_lowres"),
    "cascade": ("Dataset604_stages", "."),
}


@pytest.mark.parametrize("mirror", [True, False], ids=["mirrored", "plain"])
@pytest.mark.parametrize("name", MODELS)
def test_masks_and_probabilities_are_those_of_nnunet(name: str, mirror: bool, tmp_path: Path) -> None:
    dataset, model = (GOLDEN / MODELS[name][0], MODELS[name][1])
    made = convert_model(dataset / model, tmp_path / "run")
    configuration = read_plan(made.run / "plan.json").default_configuration
    images = sorted((dataset / "images").iterdir())
    predictor = Predictor(made.run, mirror=mirror)
    found = predictor.predict(images if len(images) > 1 else images[0], probabilities=True)
    home = dataset / "masks" / f"{configuration}_{'mirrored' if mirror else 'plain'}"
    (mask,) = (path for path in home.iterdir() if path.name.endswith((".nii.gz", ".png")))
    theirs = read_label_map(mask).array
    np.testing.assert_array_equal(found.labels, theirs)
    with np.load(home / "probabilities.npz") as stored:
        wanted = stored["probabilities"].astype(np.float32)  # of every second voxel
    seen = found.probabilities[..., ::2, ::2, ::2]
    np.testing.assert_allclose(seen, wanted.transpose(0, 3, 2, 1).reshape(seen.shape), atol=1e-3)


def test_a_run_says_where_it_came_from_and_predicts_with_all_folds(tmp_path: Path) -> None:
    home = write_results(tmp_path)
    made = convert_model(home, tmp_path / "run")
    assert made.folds == {"3d_fullres": ["fold_0", "fold_1"]}
    assert made.notes == ["3d_fullres: 2 folds of nnUNetTrainer, mirrored along 0, 1, 2"]
    plan = read_plan(made.run / "plan.json")
    assert list(plan.labels.items()) == [("background", 0), ("first", 1), ("second", 2)]
    assert (plan.conventions, plan.reorient, plan.axis_order) == ("nnunet", False, [2, 1, 0])
    origin = read_state(made.run / "models/3d_fullres/fold_1/checkpoints/last")["converted_from"]
    assert origin["checkpoint"] == "fold_1/checkpoint_final.pth"
    assert origin["sha256"] == {
        "checkpoint_final.pth": file_sha256(home / "fold_1" / "checkpoint_final.pth"),
        "plans.json": file_sha256(home / "plans.json"),
        "dataset.json": file_sha256(home / "dataset.json"),
    }
    predictor = Predictor(made.run)
    assert len(predictor.model.ensembles[0].networks) == 2
    image = np.random.default_rng(0).normal(size=(20, 20, 10)).astype(np.float32)
    assert predictor.predict((image, np.diag([1.0, 1.0, 2.0, 1.0]))).labels.shape == image.shape


def test_a_folder_above_and_a_zip_are_searched(tmp_path: Path) -> None:
    home = write_results(tmp_path / "results", folds=("fold_all",))
    (home / "fold_2").mkdir()  # not finished
    weights = "models/3d_fullres/fold_all/checkpoints/last/model.safetensors"
    wanted = file_sha256(convert_model(home, tmp_path / "a").run / weights)
    above = convert_model(tmp_path / "results", tmp_path / "b")
    assert above.folds == {"3d_fullres": ["fold_all"]}
    assert "3d_fullres: without fold_2, which holds no such checkpoint" in above.notes
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as made:
        for path in (tmp_path / "results").rglob("*"):
            made.write(path, path.relative_to(tmp_path / "results"))
    packed = convert_model(tmp_path / "x.zip", tmp_path / "c")
    assert {file_sha256(each.run / weights) for each in (above, packed)} == {wanted}


@pytest.mark.parametrize("given", [".", "newest"], ids=["the folder one stands in", "a link"])
def test_a_trained_folder_is_found_under_another_name(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = write_results(tmp_path)
    (home / "newest").symlink_to(home, target_is_directory=True)
    monkeypatch.chdir(home)
    made = convert_model(Path(given), tmp_path / "run")
    assert made.folds == {"3d_fullres": ["fold_0", "fold_1"]}
    state = read_state(made.run / "models/3d_fullres/fold_0/checkpoints/last")
    assert state["converted_from"]["source"] == (home.name if given == "." else given)


def test_fold_all_does_not_predict_beside_numbered_folds(tmp_path: Path) -> None:
    made = convert_model(write_results(tmp_path, folds=("fold_0", "fold_all", "fold_2")), tmp_path / "run")
    assert made.folds == {"3d_fullres": ["fold_0", "fold_2"]}
    assert made.notes[1:] == [
        "3d_fullres: without fold_1, which holds no such checkpoint",
        "3d_fullres: without fold_all, because numbered folds predict",
    ]


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod."])
def test_names_of_wrapped_networks_are_known(wrapper: str, tmp_path: Path) -> None:
    home = write_results(tmp_path, folds=("fold_0",))
    content = checkpoint()
    content["network_weights"] = {wrapper + name: tensor for name, tensor in content["network_weights"].items()}
    torch.save(content, home / "fold_0" / "checkpoint_final.pth")
    assert convert_model(home, tmp_path / "run").folds == {"3d_fullres": ["fold_0"]}


def change_json(name: str, edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Changes plans.json or dataset.json."""

    def change(home: Path) -> None:
        document = json.loads((home / name).read_text())
        edit(document)
        write_json(home / name, document)

    return change


def change_checkpoint(**entries: Any) -> Callable[[Path], None]:
    """Changes entries of the checkpoint of fold 1."""
    return lambda home: torch.save(checkpoint(1, **entries), home / "fold_1" / "checkpoint_final.pth")


def wider(home: Path) -> None:
    content = checkpoint(1)
    names = [name for name in content["network_weights"] if name.startswith("encoder.stages.0.0.convs.0.norm")]
    content["network_weights"] |= dict.fromkeys(names, torch.ones(9))
    torch.save(content, home / "fold_1" / "checkpoint_final.pth")


def without_heads(home: Path) -> None:
    content = checkpoint(1)
    kept = {name: value for name, value in content["network_weights"].items() if "seg_layers" not in name}
    torch.save(content | {"network_weights": kept}, home / "fold_1" / "checkpoint_final.pth")


def cut(home: Path) -> None:
    path = home / "fold_1" / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[:3000])


def part(**entries: Any) -> Callable[[Path], None]:
    return change_json("plans.json", lambda d: d["configurations"]["3d_fullres"].update(entries))


def other_plans(home: Path) -> None:
    document = plans()
    document["configurations"]["3d_fullres"]["normalization_schemes"] = ["CTNormalization"]
    change_checkpoint(init_args={"configuration": "3d_fullres", "plans": document})(home)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no plans": (lambda home: (home / "plans.json").unlink(), r"plans\.json"),
    "no description": (lambda home: (home / "dataset.json").unlink(), r"dataset\.json"),
    "plans of nnU-Net 1": (lambda home: write_json(home / "plans.json", {"plans_per_stage": {}}), "plans of nnU-Net 1"),
    "cut short": (cut, r"fold_1/checkpoint_final\.pth: damaged or cut short"),
    "no checkpoint": (lambda home: [p.unlink() for p in home.glob("*/*.pth")], "no fold has a checkpoint_final.pth"),
    "other configuration": (change_checkpoint(init_args={"configuration": "2d"}), "was trained as 2d, not 3d_fullres"),
    "other trainer in a fold": (change_checkpoint(trainer_name="Mine"), "fold_0 and fold_1 differ in trainer"),
    "other plans in a fold": (other_plans, r"fold_1 was trained with other plans .* differ in normalization_schemes"),
    "plans cut short": (
        lambda home: (home / "plans.json").write_text((home / "plans.json").read_text()[:400]),
        r"plans\.json: not a valid JSON|no plans file of nnU-Net 2",
    ),
    "no weights": (change_checkpoint(network_weights=None), "network_weights is missing"),
    "unknown weights": (change_checkpoint(network_weights={"vit.x": torch.ones(1)}), r"vit\.x is in no such network"),
    "wider": (wider, r"convs\.0\.norm\.weight is \[9\], not \[2\]"),
    "without heads": (without_heads, r"4 weights are missing, the first is our heads\.0\.bias"),
    "code": (change_checkpoint(trainer_name=Path("x")), r"wants pathlib"),
    "network": (part(UNet_class_name="Primus"), "network class 'Primus' is not one of"),
    "preprocessor": (part(preprocessor_name="Mine"), "preprocessor_name is 'Mine'"),
    "resampling": (
        part(resampling_fn_data="resample_torch_fornnunet"),
        "resampling_fn_data is resample_torch_fornnunet",
    ),
    "order": (part(resampling_fn_data_kwargs={"order": 1}), r"resampling_fn_data is .* with \{'order': 1\}"),
    "reader": (change_json("plans.json", lambda d: d.update(image_reader_writer="Mine")), "image_reader_writer 'Mine'"),
    "labels": (change_json("dataset.json", lambda d: d.pop("labels")), "field 'labels' is missing|labels"),
    "first stage": (part(previous_stage="3d_lowres"), "no configuration '3d_lowres'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_converted_is_one_line_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    home = write_results(tmp_path / "results")
    spoil, message = BAD[name]
    spoil(home)
    with pytest.raises(InputError, match=message) as raised:
        convert_model(home, tmp_path / "runs" / "run")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("runs/*"))


def test_folders_without_a_model_and_with_several_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trained model of nnU-Net 2"):
        convert_model(tmp_path, tmp_path / "run")
    with pytest.raises(InputError, match="no folder of results"):
        convert_model(tmp_path / "missing", tmp_path / "run")
    home = write_results(tmp_path / "results")
    other = home.with_name("nnUNetTrainer_250epochs__nnUNetPlans__3d_fullres")
    shutil.copytree(home, other)
    with pytest.raises(InputError, match=r"models of 2 trainings: .* Choose one with --model"):
        convert_model(home.parent, tmp_path / "run")
    with pytest.raises(InputError, match="no model 'Mine__x'"):
        convert_model(home.parent, tmp_path / "run", which="Mine__x")
    made = convert_model(home.parent, tmp_path / "run", which="nnUNetTrainer_250epochs__nnUNetPlans")
    with pytest.raises(InputError, match="exists already"):
        convert_model(home, made.run)
