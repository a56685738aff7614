"""A bundle expects of its masks under MONAI, without medmamba, what `medmamba predict` expects of them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from bundle_card import CARD
from monai.data import MetaTensor

from medmamba.bundle.runtime.expected import MEASURED, ExpectedMasks
from medmamba.bundle.runtime.inferer import PlanInferer
from medmamba.bundle.runtime.network import SegmentationNetwork
from medmamba.bundle.write import BundleError, _stages, _write, compare_with_native, run_in_monai
from medmamba.errors import InputError
from medmamba.images.cases import find_cases
from medmamba.inference.predictor import Predictor

pytest.importorskip("ignite", reason="MONAI's bundle commands need the extra 'bundle'")
pytest.importorskip("fire", reason="MONAI's bundle commands need the extra 'bundle'")


@pytest.fixture(scope="module")
def predictor(learned_run) -> Predictor:
    return Predictor(learned_run, device="cpu")


@pytest.fixture(scope="module")
def bundle(predictor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "bundle"
    _write(folder, predictor, _stages(predictor), CARD, [])
    return folder


@pytest.fixture
def rules(bundle) -> dict[str, str]:
    """The arguments of ExpectedMasks in the bundle's configuration."""
    config = json.loads((bundle / "configs/inference.json").read_text())
    facts = {name: config["expected"][name] for name in ("sha256", "weights_sha256")}
    return {"path": str(bundle / "models/expectations.json"), "plan": config["plan"], **facts}


def test_monai_writes_the_numbers_of_predict_beside_the_masks(bundle, predictor, one_image, tmp_path):
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    shutil.copyfile(one_image, images / one_image.name)
    run_in_monai(bundle, images, masks)
    name = one_image.name.removesuffix(".nii.gz")
    file = masks / f"{name}_expected.json"
    found, native = json.loads(file.read_text()), predictor.predict(one_image).record()
    assert found["expected"]
    assert found["expected"].keys() == native["expected"].keys()
    for structure, expected in native["expected"].items():
        for key, value in expected.items():
            number = isinstance(value, float)
            assert found["expected"][structure][key] == (pytest.approx(value, abs=1e-6) if number else value), key
    assert found["not_learned"] == native["not_learned"]
    assert compare_with_native(predictor, find_cases(one_image), masks)[0].voxels > 0
    structure = next(iter(found["expected"]))
    found["expected"][structure]["dice"] += 0.02
    file.write_text(json.dumps(found))
    with pytest.raises(BundleError, match=rf"the bundle expects dice .* of {structure}, medmamba .* was not kept"):
        compare_with_native(predictor, find_cases(one_image), masks)
    file.unlink()
    with pytest.raises(BundleError, match="the bundle expects"):
        compare_with_native(predictor, find_cases(one_image), masks)


def test_numbers_are_of_the_exported_weights_alone(bundle, rules, one_image):
    config = json.loads((bundle / "configs/inference.json").read_text())
    network = SegmentationNetwork(config["network_def"]["folds"], config["network_def"]["arguments"])
    window = {name: value for name, value in config["inferer"].items() if name not in ("_target_", "expected")}
    inferer = PlanInferer(expected=ExpectedMasks(**rules), **window)
    image = MetaTensor(torch.randn(1, 1, *config["plan"]["patch_size"]), meta={"filename_or_obj": [str(one_image)]})

    def measured():
        return json.loads(inferer(image, network).meta[MEASURED][0])

    assert measured() == "not learned for these weights: they are not those of the export"
    network.load_state_dict(torch.load(bundle / "models/model.pt", weights_only=True))
    assert set(measured()) == {"1", "2"}
    assert not isinstance(inferer(image.as_tensor(), network), MetaTensor)  # a client without metadata gets logits


def test_rules_that_were_not_exported_are_refused_in_one_line(rules, tmp_path):
    other = tmp_path / "expectations.json"
    shutil.copyfile(rules["path"], other)
    ExpectedMasks(**{**rules, "path": str(other)})
    other.write_text(other.read_text().replace("0", "1", 1))
    for path in (other, tmp_path / "none.json"):
        with pytest.raises(
            InputError, match=r"not the rules of expected quality that were exported \(SHA-256\)\. Copy"
        ):
            ExpectedMasks(**{**rules, "path": str(path)})


def test_a_bundle_without_rules_has_none(tiny_run, tmp_path):
    model = Predictor(tiny_run, device="cpu", mirror=False)
    _write(tmp_path, model, _stages(model), CARD, [])
    assert "expected" not in (tmp_path / "configs/inference.json").read_text()
    assert "expected" not in (tmp_path / "docs/README.md").read_text()
