"""What docs/explanation/trust.md promises of files from strangers: none of them runs code or writes outside."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile

import pytest
import torch
from tiny_models import make_fold

from medmamba.errors import ConfigError, InputError, MedmambaError
from medmamba.inference.predictor import Predictor
from medmamba.models.run_folder import read_plan
from medmamba.models.trained_folds import load_weights, read_model_facts
from medmamba.networks.build import rebuild_network
from medmamba.training.fold import stored_config


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def fold(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run" / "models" / "3d_fullres" / "fold_0"


@pytest.mark.parametrize("wrapped", [False, True])
def test_pickles_in_the_place_of_weights_are_not_run(fold, tmp_path, wrapped):
    hostile, place = tmp_path / "hostile", fold / "checkpoints" / "last" / "model.safetensors"
    if wrapped:
        torch.save({"weights": Canary(hostile)}, place)
    else:
        place.write_bytes(pickle.dumps(Canary(hostile)))
    with pytest.raises(MedmambaError):
        Predictor(fold, device="cpu")
    bundled = tmp_path / "bundle" / "models" / "x" / "fold_0"
    bundled.mkdir(parents=True)
    facts = json.loads((fold / "model.json").read_text()) | {"state_dict": "../../model.pt"}
    (bundled / "model.json").write_text(json.dumps(facts))
    shutil.copyfile(place, tmp_path / "bundle" / "models" / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt: (damaged, or no file of weights|holds more than tensors)"):
        load_weights(bundled, rebuild_network(read_model_facts(bundled).network))
    assert not hostile.exists()
    assert wrapped == zipfile.is_zipfile(place)


@pytest.mark.parametrize("path", ["/etc/model.pt", "../../../model.pt", "model.pt", "../../.."])
def test_a_bundle_names_no_weights_outside_of_itself(fold, path):
    facts = json.loads((fold / "model.json").read_text()) | {"state_dict": path}
    (fold / "model.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="leads out of the bundle"):
        read_model_facts(fold)


@pytest.mark.parametrize("name", ["os.system", "os:system", "torch.nn.Linear", "../x"])
def test_a_plan_and_a_model_name_networks_of_a_table_only(fold, name):
    facts = json.loads((fold / "model.json").read_text())
    facts["network"]["name"] = name
    (fold / "model.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="Unknown network"):
        rebuild_network(read_model_facts(fold).network)
    plan = json.loads((fold / "plan.json").read_text())
    plan["normalization"][0]["scheme"] = name
    (fold / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ConfigError, match="is none of the normalisations"):
        read_plan(fold / "plan.json")


def test_a_loss_that_a_run_names_is_not_taken_from_the_run_folder(fold, tmp_path, monkeypatch):
    from medmamba.training.loss_names import find_loss

    (fold / "hostile_loss.py").write_text(f"import os; os.mkdir({str(tmp_path / 'hostile')!r})\n")
    (fold / "train.json").write_text('{"loss": "hostile_loss:f"}')
    with pytest.raises(ConfigError, match="cannot be imported"):
        find_loss(stored_config(fold).loss)
    assert not (tmp_path / "hostile").exists()


def test_the_weights_of_another_model_are_refused(fold, tmp_path):
    other = make_fold(tmp_path / "other", read_plan(fold / "plan.json"), 9)
    shutil.copyfile(other / "checkpoints/last/model.safetensors", fold / "checkpoints/last/model.safetensors")
    with pytest.raises(InputError, match=r"differs from what was saved \(SHA-256\)"):
        Predictor(fold, device="cpu")
