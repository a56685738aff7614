"""The MONAI Bundle: complete, self-contained, and equal to the model in every voxel."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_card import CARD
from dicom_series import write_series
from monai.data import MetaTensor

from medmamba.bundle.card import licence_text, readme
from medmamba.bundle.options import BundleCard
from medmamba.bundle.runtime.transforms import _with_trail
from medmamba.bundle.sources import bundle_sources
from medmamba.bundle.write import BundleError, compare_with_native, run_in_monai
from medmamba.cli.main import run as medmamba_command
from medmamba.errors import InputError
from medmamba.networks.build import available_networks

pytest.importorskip("ignite", reason="MONAI's bundle commands need the extra 'bundle'")
pytest.importorskip("fire", reason="MONAI's bundle commands need the extra 'bundle'")


def test_monai_runs_the_bundle_without_medmamba_to_the_same_voxels(exported, one_image):
    (case,) = exported.cases
    assert case.voxels == np.prod(nib.load(one_image).shape)
    assert case.foreground > 0
    assert "verify_metadata and verify_net_in_out passed" in exported.printed


def test_a_bundle_has_every_file_that_clients_look_for(exported):
    for name in ("LICENSE", "configs/metadata.json", "configs/inference.json", "configs/logging.conf",
                 "models/model.pt", "models/model.ts", "docs/README.md", "docs/license.txt",
                 "scripts/__init__.py"):  # fmt: skip
        assert (exported.folder / name).is_file(), name
    config = json.loads((exported.folder / "configs/inference.json").read_text())
    for entry in ("bundle_root", "device", "dataset_dir", "dataset", "evaluator", "network_def", "network", "inferer",
                  "preprocessing", "postprocessing", "handlers", "run"):  # fmt: skip
        assert entry in config
    assert not list(exported.folder.rglob("__pycache__"))
    assert not list(exported.folder.parent.glob("*.part*"))


def test_the_card_names_the_scan_backend_of_training_and_of_the_check(exported):
    card = (exported.folder / "docs" / "README.md").read_text()
    assert re.search(r"^\| scan backend \| training: .+; export check: (cpp|torch) \|$", card, re.MULTILINE)


def test_the_api_and_the_command_predict_from_the_bundle_as_from_the_run(exported, tiny_model, one_image, tmp_path):
    import medmamba

    run = medmamba.Predictor.from_run(tiny_model, device="cpu", mirror=False)
    bundle = medmamba.Predictor.from_bundle(exported.folder, device="cpu")
    assert bundle.provenance().settings.mirror is False  # as it was exported
    assert bundle.provenance().weights_sha256 == run.provenance().weights_sha256
    assert bundle.model.fingerprint is not None
    expected = run.predict(one_image)
    found = bundle.predict(one_image)
    assert np.array_equal(found.labels, expected.labels)
    assert found.findings == expected.findings
    with pytest.raises(SystemExit) as ended:
        medmamba_command(["predict", str(exported.folder), str(one_image), "-o", str(tmp_path), "--device", "cpu"])
    assert not ended.value.code
    assert np.array_equal(np.asarray(nib.load(tmp_path / one_image.name).dataobj), expected.labels)


def test_weights_are_a_raw_state_dict_that_loads_without_pickled_code(exported):
    state = torch.load(exported.folder / "models" / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert all(name.startswith("members.0.") for name in state)


def test_metadata_says_classes_intended_use_and_what_it_was_checked_on(exported):
    facts = json.loads((exported.folder / "configs/metadata.json").read_text())
    assert facts["network_data_format"]["outputs"]["pred"]["channel_def"]["0"] == "background"
    assert facts["intended_use"].startswith("The hippocampus in T1 MR")
    assert facts["version"] == "1.2.3"
    assert list(facts["changelog"]) == ["1.2.3"]
    assert facts["medmamba"]["checked_on"] == [exported.cases[0].case_id]


def test_metadata_without_a_key_is_refused_by_the_name_of_the_key(exported, tmp_path):
    facts = json.loads((exported.folder / "configs/metadata.json").read_text())
    del facts["authors"]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps(facts))
    with pytest.raises(BundleError, match="'authors' is a required property"):
        run_in_monai(tmp_path, tmp_path, tmp_path)


def test_one_different_voxel_fails_the_comparison(tiny_model, one_image, tmp_path):
    from medmamba.images.cases import find_cases
    from medmamba.inference.predictor import Predictor
    from medmamba.pipeline import predict

    predictor = Predictor(tiny_model, device="cpu", mirror=False)
    predict(predictor, one_image, tmp_path / "masks")
    mask = tmp_path / "masks" / one_image.name
    (tmp_path / "masks" / "report.json").unlink()
    cases = find_cases(one_image)
    assert compare_with_native(predictor, cases, tmp_path / "masks")[0].voxels > 0
    image = nib.load(mask)
    labels = np.asarray(image.dataobj).copy()
    labels[3, 4, 5] = (labels[3, 4, 5] + 1) % 3
    nib.save(nib.Nifti1Image(labels, image.affine, image.header), mask)
    with pytest.raises(BundleError, match=r"1 of \d+ voxels differ .* the first at \(3, 4, 5\)"):
        compare_with_native(predictor, cases, tmp_path / "masks")


@pytest.mark.parametrize("missing", ["licence", "intended_use"])
def test_an_export_without_licence_or_intended_use_is_refused(missing, tmp_path, capsys):
    options = {"licence": "Apache-2.0", "intended_use": "research"} | {missing: ""}
    with pytest.raises(InputError, match="A bundle needs"):
        BundleCard(**options)
    with pytest.raises(SystemExit) as stopped:
        medmamba_command(["export", str(tmp_path), "-o", str(tmp_path / "b"), "--check-on", str(tmp_path)])
    assert stopped.value.code == 2
    assert "--licence" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_an_export_is_not_checked_on_what_monai_cannot_read(tiny_run, tmp_path):
    from medmamba.bundle.write import export_bundle

    series = write_series(tmp_path / "SERIES", np.zeros((3, 8, 8), np.int16))
    with pytest.raises(InputError, match=r"SERIES: MONAI runs a bundle on single files \(\.nii\.gz"):
        export_bundle(tiny_run, tmp_path / "bundle", CARD, series)
    assert not (tmp_path / "bundle").exists()


def test_a_folder_of_other_files_is_not_taken_for_the_bundles(tiny_run, one_image, tmp_path):
    from medmamba.bundle.write import export_bundle

    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    for folder, reason in (
        (tiny_run, "would be replaced, and holds"),
        (tmp_path / "other", "not written by medmamba, or changed since"),
    ):
        before = sorted(folder.rglob("*"))
        with pytest.raises(InputError, match=reason):
            export_bundle(tiny_run, folder, CARD, one_image)
        assert sorted(folder.rglob("*")) == before


def test_a_licence_file_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match=r"no such file"):
        licence_text(BundleCard(licence="terms/MISSING.txt", intended_use="research"))


def test_copied_sources_import_nothing_of_ours_and_no_pydantic(tmp_path):
    texts = bundle_sources()
    for name, text in texts.items():
        path = tmp_path / "scripts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        assert not re.search(r"^(from|import) (medmamba|pydantic|triton|nibabel)\b", text, re.MULTILINE), name
    code = (
        "import sys; sys.modules['medmamba'] = sys.modules['pydantic'] = None\n"
        "import scripts.network, scripts.inferer, scripts.transforms, scripts.cases, scripts.finetune\n"
        "from scripts.networks.build import available_networks, build_network\n"
        "from scripts.kernels import OPERATORS\n"
        "print(OPERATORS, *available_networks())\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("torch ")
    assert result.stdout.split()[1:] == list(available_networks())


def test_a_bundle_takes_the_compiled_operators_where_medmamba_is_installed(tmp_path):
    import medmamba.bundle.runtime.operators as operators
    import medmamba.kernels as kernels

    assert operators.OPERATORS == "medmamba"
    assert operators.routed_scan is kernels.routed_scan


@pytest.mark.slow
def test_monai_continues_the_training_without_medmamba(exported, small_dataset, tmp_path):
    code = (
        "import runpy, sys\n"
        "sys.modules['medmamba'] = None\n"
        "sys.argv = ['monai.bundle', 'run', '--config_file', 'configs/train.json', '--bundle_root', '.',\n"
        "    '--logging_file', 'configs/logging.conf', '--dataset_dir', sys.argv[1], '--output_dir', sys.argv[2],\n"
        "    '--epochs', '1', '--iterations', '2']\n"
        "runpy.run_module('monai.bundle', run_name='__main__', alter_sys=True)\n"
    )
    result = subprocess.run(
        [sys.executable, "-B", "-c", code, str(small_dataset), str(tmp_path)],
        cwd=exported.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "train_loss" in result.stdout + result.stderr
    before = torch.load(exported.folder / "models" / "model.pt", weights_only=True)
    after = torch.load(tmp_path / "trained.pt", weights_only=True)  # takes the place of model.pt
    assert {name: value.shape for name, value in after.items()} == {k: value.shape for k, value in before.items()}
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_the_model_card_says_each_thing_once_and_counts_in_plain_numbers():
    made = {
        "network": "vm_unet",
        "folds": 1,
        "parameters": 10,
        "patch_size": [8, 8],
        "trained_with_scan_backend": "cpp",
        "settings": {"scan_backend": "cpp", "configuration": ["3d_cascade_fullres"]},
        "stages": ["3d_cascade_fullres", "3d_lowres"],
    }
    image = {"spatial_shape": ["8*n", "8*n"]}
    facts = {
        "description": "d",
        "image_classes": "channels: MRI",
        "label_classes": "organ",
        "data_source": "set",
        "network_data_format": {"inputs": {"image": image}},
        "medmamba": made,
    }
    text = readme(BundleCard(licence="MIT", intended_use="none"), facts)
    for line in (
        "| channels | MRI |",
        "| network | vm_unet, 1 fold, 10 parameters |",
        "| configurations | 3d_cascade_fullres, after 3d_lowres |",
    ):
        assert line in text.splitlines()
    made["stages"] = made["settings"]["configuration"] = ["2d", "3d_fullres"]
    made["folds"] = 2
    text = readme(BundleCard(licence="MIT", intended_use="none"), facts)
    assert "| configurations | 2d + 3d_fullres |" in text
    assert "vm_unet, 2 folds," in text


def test_arrays_that_cannot_be_written_to_cause_no_warning_of_torch():
    array, affine = np.zeros((1, 2, 2, 2), np.float32), np.eye(4)
    array.flags.writeable = affine.flags.writeable = False
    case = SimpleNamespace(image=array, trail=SimpleNamespace(grid=SimpleNamespace(affine=affine), as_dict=dict))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not writable")
        assert _with_trail(case, MetaTensor(torch.ones(1, 2, 2, 2))).shape == (1, 2, 2, 2)
