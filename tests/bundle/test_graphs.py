"""TorchScript, torch.export and ONNX: the same logits, without medmamba, monai or the bundle's sources."""

from __future__ import annotations

import json

import pytest
import torch

from medmamba.bundle.graphs import LARGEST_DIFFERENCE, export_graph
from medmamba.bundle.runtime.network import SegmentationNetwork
from medmamba.bundle.sources import bundle_sources
from medmamba.errors import ConfigError, InputError
from medmamba.networks.build import available_networks, network_facts

ARGUMENTS = {
    "name": "vm_unet",
    "spatial_dims": 3,
    "in_channels": 2,
    "out_channels": 3,
    "strides": [[1, 1, 1], [2, 2, 2], [1, 2, 2]],
    "features_per_stage": [4, 8, 8],
    "state_size": 2,
}


def parts_of_a_bundle(folder, arguments, patch):
    """What an export reads of a bundle, with random weights."""
    for name, text in bundle_sources().items():
        path = folder / "scripts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in ("configs", "models"):
        (folder / name).mkdir()
    config = {"network_def": {"folds": 1, "arguments": arguments}, "plan": {"patch_size": patch}}
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "configs" / "metadata.json").write_text(json.dumps({"name": "parts"}))
    torch.manual_seed(0)
    torch.save(SegmentationNetwork(1, arguments).state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A small anisotropic network."""
    return parts_of_a_bundle(tmp_path_factory.mktemp("bundle"), ARGUMENTS, [4, 8, 8])


@pytest.mark.parametrize("kind", ["torchscript", "torch-export", "onnx"])
def test_an_exported_network_gives_the_same_logits_at_several_batch_sizes(kind, bundle):
    if kind == "onnx":
        pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
        pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    table = export_graph(bundle, kind)
    expected = [(batch, 2, 4, 8, 8) for batch in (1, 2, 3)]
    if kind == "torchscript":
        expected = [(1, 2, 4, 8, 8), (2, 2, 5, 11, 11)]
    assert [row.shape for row in table] == expected
    assert max(row.difference for row in table) <= LARGEST_DIFFERENCE


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torchscript", "torch-export", "onnx"])
@pytest.mark.parametrize("name", available_networks())
def test_every_planned_family_is_exported_in_every_format(name, kind, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    arguments = {
        "name": name,
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 2,
        "strides": [[1, 1], [2, 2], [2, 2]],
        "features_per_stage": [16, 32, 64],
    }
    table = export_graph(parts_of_a_bundle(tmp_path, arguments, [16, 16]), kind)
    assert {row.shape[0] for row in table} >= {1, 2}
    assert max(row.difference for row in table) <= LARGEST_DIFFERENCE
    any_patch = kind == "torchscript" if name == "vm_unet" else not network_facts(name).has_scan
    assert ({row.shape[2] for row in table} != {16}) == (any_patch and (name, kind) != ("mambaout", "torchscript"))


def test_an_unknown_format_and_a_folder_that_is_no_bundle_are_refused(bundle, tmp_path):
    with pytest.raises(ConfigError, match=r"Unknown format 'onx'\. Did you mean 'onnx'"):
        export_graph(bundle, "onx")
    with pytest.raises(InputError, match="not a bundle of `medmamba export`"):
        export_graph(tmp_path, "onnx")
