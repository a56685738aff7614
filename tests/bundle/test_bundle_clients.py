"""Clients of a bundle: MONAI's load and ckpt_export, an operator that loads images its own way, damaged bundles."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_series import changed, write_series

from medmamba.cli.main import run as medmamba_command
from medmamba.errors import ConfigError, InputError
from medmamba.inference.predictor import Predictor

PATIENT = {"StudyID": "1", "PatientID": "1", "FrameOfReferenceUID": "1.2.9", "SliceThickness": 1.0}
PATIENT |= dict.fromkeys(("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyDate", "StudyTime"), "")
"""Elements that the SDK's writer needs of a series; most may be empty."""
APPLICATION = Path(__file__).resolve().parents[2] / "examples" / "deploy" / "app.py"
# As the bundle operator of the MONAI Deploy App SDK: the image comes without channels, the network as a model object
# that is no module, and of the bundle's transforms those that load and save are left out.
CLIENT = """
import sys
sys.modules["medmamba"] = None
sys.path.insert(0, ".")
import numpy as np, torch, monai.bundle
from monai.transforms import LoadImage
written, image, out = sys.argv[1:]
monai.bundle.ckpt_export(config_file="configs/inference.json", filepath=written, bundle_root=".")
parser = monai.bundle.ConfigParser()
parser.read_meta(f="configs/metadata.json")
parser.read_config("configs/inference.json")
parser.parse()
before, after = (parser.get_parsed_content(name).transforms for name in ("preprocessing", "postprocessing"))
data = {"image": LoadImage(image_only=True)(image)}
assert data["image"].ndim == 3
for transform in before:
    data = data if "LoadImage" in type(transform).__name__ else transform(data)
network = torch.jit.load("models/model.ts").eval()
with torch.no_grad():
    inferer = parser.get_parsed_content("inferer")
    data["pred"] = inferer(inputs=data["image"][None], network=lambda patches: network(patches))[0]
for transform in after:
    data = data if "SaveImage" in type(transform).__name__ else transform(data)
np.save(out, np.asarray(data["pred"]))
"""


def _loaded(exported):
    """The TorchScript module of a bundle, its metadata and configuration, as MONAI loads them."""
    from monai.bundle import load

    folder = exported.folder
    options = {"load_ts_module": True, "config_files": ("inference.json",), "device": "cpu"}
    return load(folder.name, bundle_dir=str(folder.parent), **options)


def test_monai_loads_the_network_with_metadata_and_configuration(exported, tiny_model):
    network, metadata, files = _loaded(exported)
    for name, found in (("metadata.json", metadata), ("inference.json", json.loads(files["inference.json"]))):
        assert found == json.loads((exported.folder / "configs" / name).read_text())
    own = Predictor(tiny_model, device="cpu").model.ensembles[0].networks[0]
    for shape in ((1, 1, 16, 24, 16), (2, 1, 13, 24, 20)):
        image = torch.randn(shape)
        with torch.no_grad():
            assert torch.allclose(network(image), own(image), atol=1e-4)
    assert {row.kind for row in exported.graphs} == {"torchscript"}


def test_outputs_are_images_as_clients_understand_them(exported):
    facts = json.loads((exported.folder / "configs" / "metadata.json").read_text())
    assert facts["network_data_format"]["outputs"]["pred"]["type"] == "image"


def test_ckpt_export_and_a_client_that_loads_images_itself(exported, one_image, tmp_path):
    command = [sys.executable, "-B", "-W", "ignore", "-c", CLIENT]
    command += [str(tmp_path / "own.ts"), str(one_image), str(tmp_path / "mask.npy")]
    done = subprocess.run(command, cwd=exported.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = Predictor(exported.folder, device="cpu").predict(one_image).labels
    assert np.array_equal(np.load(tmp_path / "mask.npy")[0], expected)
    image = torch.randn(1, 1, 16, 24, 16)
    with torch.no_grad():
        assert torch.equal(torch.jit.load(tmp_path / "own.ts")(image), _loaded(exported)[0](image))


@pytest.fixture
def copied(exported, tmp_path) -> Path:
    """A bundle of one's own to damage."""
    return Path(shutil.copytree(exported.folder, tmp_path / "bundle"))


def _refused(bundle: Path, message: str) -> None:
    with pytest.raises((ConfigError, InputError), match=message) as refusal:
        Predictor(bundle, device="cpu")
    assert "\n" not in str(refusal.value)


def test_altered_weights_of_a_bundle_are_refused(copied):
    path = copied / "models" / "model.pt"
    state = torch.load(path, weights_only=True)
    next(iter(state.values())).view(-1)[0] += 1e-6
    torch.save(state, path)
    _refused(copied, r"model\.pt: these are not the weights that were exported \(SHA-256\)\. Copy the bundle again\.")


@pytest.mark.parametrize("kept", [0, 0.5, 0.999])
def test_a_truncated_bundle_is_refused(kept, copied):
    path = copied / "models" / "model.pt"
    os.truncate(path, int(path.stat().st_size * kept))
    _refused(copied, r"model\.pt: damaged, or no file of weights \(.+\)\. Copy it again")


def test_an_altered_record_of_a_bundle_is_refused(copied):
    (path,) = copied.glob("models/*/fold_*/model.json")
    path.write_text(path.read_text().replace('"prefix": "members.0."', '"prefix": "members.1."'))
    _refused(copied, r"model\.json: this record of a trained fold was altered after it was written \(SHA-256\)")


def test_a_recipe_that_was_put_into_a_bundle_is_refused(copied):
    (record,) = copied.glob("models/*/fold_*/model.json")
    facts, name = json.loads(record.read_text()), record.parent.parent.name
    recipe = {"schema_version": 1, "plan_sha256": facts["plan_sha256"], "configurations": [name], "cases": 4}
    recipe |= {"folds": {name: [record.parent.name]}, "dice": {name: 0.5}, "thresholds": {}}
    recipe["cleaning"] = [{"label": "anterior", "action": "largest_component"}]
    (copied / "models" / "best.json").write_text(json.dumps(recipe))
    _refused(copied, r"best\.json was altered after the export")


def _of_another_export(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


@pytest.mark.parametrize("name", ["models/*/fold_*/plan.json", "models/fingerprint.json"])
def test_a_part_of_another_export_that_prediction_reads_is_refused(copied, name):
    (path,) = copied.glob(name)
    _of_another_export(path)
    _refused(copied, rf"{path.name}: not the one that was exported with the other parts \(SHA-256\)\. Copy the bundle")


def test_metadata_of_another_export_are_refused_and_its_card_may_be_edited(copied):
    path = copied / "configs" / "metadata.json"
    facts = json.loads(path.read_text())
    facts["authors"] = "Somebody else"
    path.write_text(json.dumps(facts))
    assert Predictor(copied, device="cpu").model.warnings == ()
    facts["medmamba"]["settings"]["mirror"] = True
    path.write_text(json.dumps(facts))
    _refused(copied, r"metadata\.json: not the one that was exported with the other parts \(SHA-256\)")


@pytest.mark.parametrize("name", ["configs/inference.json", "models/model.ts", "scripts/inferer.py"])
def test_a_part_of_another_export_that_only_monai_reads_is_a_warning(copied, name):
    _of_another_export(copied / name)
    (warning,) = Predictor(copied, device="cpu").model.warnings
    said = f"{name} not as exported with the other parts (SHA-256); MONAI may predict other masks than medmamba"
    assert warning == f"{copied}: {said}"


def test_a_bundle_of_an_earlier_version_has_no_hashes_of_its_parts(copied):
    (copied / "models" / "parts.json").unlink()
    _of_another_export(copied / "configs" / "inference.json")
    assert Predictor(copied, device="cpu").model.warnings == ()


def test_a_full_disk_ends_an_export_in_one_line_and_leaves_nothing(tiny_model, one_image, tmp_path, monkeypatch):
    from bundle_card import CARD

    from medmamba.bundle.write import export_bundle
    from medmamba.errors import ResourceError

    def save(state: object, file: object) -> None:
        assert not isinstance(file, (str, Path))  # torch.save of a path raises no OSError
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(ResourceError, match="the disk is full"):
        export_bundle(tiny_model, tmp_path / "out" / "bundle", CARD, one_image, mirror=False)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_the_deploy_application_makes_the_mask_of_predict(exported, one_image, tmp_path):
    python = os.environ.get("MEDMAMBA_DEPLOY_PYTHON")
    if python is None:
        pytest.skip("no MONAI Deploy App SDK; name the python of its environment by MEDMAMBA_DEPLOY_PYTHON")
    hd = pytest.importorskip("highdicom", reason="needs the extra 'dicom'")
    voxels = np.asarray(nib.load(one_image).dataobj).astype(np.int16)
    series = write_series(tmp_path / "series", voxels, thickness=1.0)
    for path in series.iterdir():
        changed(path, PixelSpacing=[1.0, 1.0], SeriesNumber=1, **PATIENT)
    command = f'ulimit -s 32768; exec "{python}" "{APPLICATION}" -i "{series}" -o "{tmp_path / "out"}" -m "$1"'
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        ["bash", "-c", command, "bash", str(exported.folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    with pytest.raises(SystemExit):
        medmamba_command(
            [
                "predict",
                str(exported.folder),
                str(series),
                "-o",
                str(tmp_path / "ours"),
                "--device",
                "cpu",
                "--dicom-seg",
            ]
        )
    theirs, ours = (hd.seg.segread(next(tmp_path.glob(name))) for name in ("out/*.dcm", "ours/*.dcm"))
    names = [[part.SegmentLabel for part in found.SegmentSequence] for found in (theirs, ours)]
    assert names[0] == names[1] == ["Anterior", "Posterior"]
    masks = [found.get_volume(combine_segments=True).array for found in (theirs, ours)]
    assert np.array_equal(*masks)
    assert set(np.unique(masks[0])) == {0, 1, 2}
