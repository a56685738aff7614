"""nnU-Net plans files are read with all their numbers, and written where nnU-Net can express the plan."""

from __future__ import annotations

import json

import numpy as np
import pytest
from planning_cases import DATASETS, read, reference_fingerprint, volumes

from medmamba.errors import ConfigError
from medmamba.plans.nnunet_files import from_nnunet, to_nnunet
from medmamba.plans.options import PlanOptions
from medmamba.plans.planner import DatasetFacts, make_plan
from medmamba.plans.schema import ConvolutionParts

FACTS = {"mean": 100.0, "median": 99.0, "std": 30.0, "min": 0.0, "max": 400.0}
FACTS |= {"percentile_00_5": 10.0, "percentile_99_5": 250.0}


def their_file(name: str, planner: str = "default") -> tuple[str, str]:
    """A plans file with the decisions of a reference case, as nnU-Net 2.8.1 writes it, and dataset.json."""
    case = read(name)
    expected = case["expected"]
    variant = next(v for v in expected["variants"] if v["planner"] == planner)
    configurations = {}
    for key, part in variant["configurations"].items():
        blocks = "n_conv_per_stage" if planner == "default" else "n_blocks_per_stage"
        network = "PlainConvUNet" if planner == "default" else "ResidualEncoderUNet"
        configurations[key] = {
            "batch_size": part["batch_size"],
            "patch_size": part["patch_size"],
            "median_image_size_in_voxels": part["median_image_size_in_voxels"],
            "spacing": part["spacing"],
            "normalization_schemes": expected["normalization_schemes"],
            "use_mask_for_norm": expected["use_mask_for_norm"],
            "architecture": {
                "network_class_name": f"dynamic_network_architectures.architectures.unet.{network}",
                "arch_kwargs": {
                    "n_stages": part["n_stages"],
                    "features_per_stage": part["features_per_stage"],
                    "kernel_sizes": part["kernel_sizes"],
                    "strides": part["strides"],
                    blocks: part["blocks_per_stage_encoder"],
                    "n_conv_per_stage_decoder": part["blocks_per_stage_decoder"],
                    "conv_op": f"torch.nn.modules.conv.Conv{len(part['patch_size'])}d",
                    "conv_bias": True,
                    "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{len(part['patch_size'])}d",
                    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                    "dropout_op": None,
                    "dropout_op_kwargs": None,
                    "nonlin": "torch.nn.LeakyReLU",
                    "nonlin_kwargs": {"inplace": True},
                },
            },
            "batch_dice": part["batch_dice"],
        }
    if "3d_cascade_fullres" in variant["configurations_planned"]:
        configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
        configurations["3d_lowres"]["next_stage"] = "3d_cascade_fullres"
    picture = case["dataset"]["file_ending"] == ".png"
    plans = {
        "dataset_name": name,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "NaturalImage2DIO" if picture else "SimpleITKIO",
        "transpose_forward": expected["transpose_forward"],
        "transpose_backward": expected["transpose_backward"],
        "foreground_intensity_properties_per_channel": {str(n): FACTS for n in range(8)},
        "configurations": configurations,
    }
    dataset = {**case["dataset"], "numTraining": case["dataset"]["num_training"]}
    return json.dumps(plans), json.dumps(dataset)


@pytest.mark.parametrize("planner", ["default", "resenc_l"])
@pytest.mark.parametrize("name", [name for name in DATASETS if name != "one_slice_coarse_axis_elsewhere"])
def test_every_number_of_a_plans_file_is_taken_over(name: str, planner: str) -> None:
    plan = from_nnunet(*their_file(name, planner))
    variant = next(v for v in read(name)["expected"]["variants"] if v["planner"] == planner)
    assert list(plan.configurations) == variant["configurations_planned"]
    for key, wanted in variant["configurations"].items():
        part = plan.configurations[key]
        assert part.patch_size == wanted["patch_size"]
        assert part.batch_size == wanted["batch_size"]
        assert part.batch_dice == wanted["batch_dice"]
        assert part.network.strides == wanted["strides"]
        assert part.network.kernel_sizes == wanted["kernel_sizes"]
        assert part.network.features_per_stage == wanted["features_per_stage"]
        assert part.network.blocks_per_stage == wanted["blocks_per_stage_encoder"]
        assert part.network.decoder_convs == wanted["blocks_per_stage_decoder"]


def test_their_array_axes_become_ours() -> None:
    """A sagittal volume: nnU-Net's coarse array axis 2 of (z, y, x) is our axis i, and ends up first in both."""
    plan = from_nnunet(*their_file("mr_spine_sagittal_axis2"))
    theirs = np.zeros((640, 639, 16))  # (z, y, x)
    ours = theirs.transpose(2, 1, 0)  # (i, j, k)
    forward = read("mr_spine_sagittal_axis2")["expected"]["transpose_forward"]
    assert ours.transpose(plan.axis_order).shape == theirs.transpose(forward).shape == (16, 640, 639)


def test_regions_become_labels_and_the_regions_they_join() -> None:
    plan = from_nnunet(*their_file("mr_brain_4ch_skullstripped"))
    assert plan.labels == {"background": 0, "label_1": 1, "label_2": 2, "label_3": 3}
    assert plan.regions == {
        "whole_tumour": ["label_1", "label_2", "label_3"],
        "tumour_core": ["label_2", "label_3"],
        "enhancing": ["label_3"],
    }


@pytest.mark.parametrize("name", ["ct_lung", "mr_spine_sagittal_axis2", "photo_2d_rgb", "mr_hippocampus_tiny"])
@pytest.mark.parametrize("network", ["plain_unet", "residual_unet"])
def test_a_plan_survives_the_way_through_nnunets_file(name: str, network: str) -> None:
    fingerprint = reference_fingerprint(name)
    ending = read(name)["dataset"]["file_ending"]
    plan = make_plan(fingerprint, PlanOptions(network=network), DatasetFacts(file_ending=ending))
    dataset = {
        "channel_names": {str(number): channel for number, channel in enumerate(plan.channel_names)},
        "labels": plan.labels,
        "file_ending": ending,
    }
    again = from_nnunet(to_nnunet(plan), json.dumps(dataset))
    assert (again.axis_order, again.normalization) == (plan.axis_order, plan.normalization)
    assert list(again.configurations) == list(plan.configurations)
    for key, part in plan.configurations.items():
        other = again.configurations[key]
        assert other.model_copy(update={"decisions": [], "network": None}) == part.model_copy(
            update={"decisions": [], "network": None, "mirroring": None}  # their file has no mirroring
        )
        assert other.network.strides == part.network.strides
        assert other.network.features_per_stage == part.network.features_per_stage
        assert other.network.blocks_per_stage == part.network.blocks_per_stage
        assert other.network.decoder_convs == [2 if network == "plain_unet" else 1] * (len(part.network.strides) - 1)


@pytest.mark.parametrize("planner", ["default", "resenc_m", "resenc_l", "resenc_xl"])
def test_a_network_of_nnunet_comes_out_as_it_went_in(planner: str) -> None:
    plans, dataset = their_file("mr_prostate_2ch", planner)

    def architectures(text: str) -> dict:
        configurations = json.loads(text)["configurations"]
        return {name: part["architecture"] for name, part in configurations.items() if "architecture" in part}

    written = architectures(to_nnunet(from_nnunet(plans, dataset)))
    for name, wanted in architectures(plans).items():
        assert written[name]["network_class_name"] == wanted["network_class_name"]
        assert written[name]["arch_kwargs"] == wanted["arch_kwargs"]


def test_blocks_and_convolutions_of_another_plan_are_those_that_are_built() -> None:
    from medmamba.models.network import network_arguments
    from medmamba.networks.build import build_network

    def edit(document: dict) -> None:
        numbers = document["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
        numbers |= {"n_blocks_per_stage": [2, 1, 1, 3], "n_conv_per_stage_decoder": [1, 3, 2]}
        numbers["features_per_stage"] = [4, 8, 8, 8]

    plans, dataset = their_file("mr_hippocampus_tiny", "resenc_m")
    plan = from_nnunet(change(plans, edit), dataset)
    built = build_network(**network_arguments(plan, plan.configurations["3d_fullres"]))
    assert [sum("second.conv.weight" in name for name in stage.state_dict()) for stage in built.encoder] == [2, 1, 1, 3]
    assert [len(stage.convs) for stage in built.decoder] == [1, 3, 2]
    assert json.loads(to_nnunet(plan))["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"][
        "n_conv_per_stage_decoder"
    ] == [1, 3, 2]


def in_2d(**parts: object):
    return lambda document: document["configurations"]["2d"]["architecture"]["arch_kwargs"].update(parts)


def test_other_parts_of_a_network_are_built_and_written_again() -> None:
    from medmamba.models.network import network_arguments
    from medmamba.networks.build import build_network

    parts = {"norm_op": "torch.nn.BatchNorm2d", "conv_bias": False, "dropout_op": "torch.nn.Dropout2d"}
    parts |= {"dropout_op_kwargs": {"p": 0.25}, "nonlin_kwargs": {"inplace": True, "negative_slope": 0.2}}
    plans, dataset = their_file("mr_hippocampus_tiny")
    plan = from_nnunet(change(plans, in_2d(**parts)), dataset)
    for again in (plan, from_nnunet(to_nnunet(plan), dataset)):
        wanted = ConvolutionParts(bias=False, norm="batch", slope=0.2, dropout=0.25)
        assert again.configurations["2d"].network.parts == wanted
    assert plan.configurations["3d_fullres"].network.parts is None
    assert '"parts"' not in json.dumps(plan.configurations["3d_fullres"].model_dump(mode="json"))
    built = build_network(**network_arguments(plan, plan.configurations["2d"]))
    names = [type(module).__name__ for module in built.encoder[0][0]]
    assert names == ["Conv2d", "Dropout2d", "BatchNorm2d", "LeakyReLU"]
    assert built.encoder[0][0].act.negative_slope == 0.2
    assert [name for name in built.state_dict() if "conv.bias" in name] == []
    relu = build_network(**network_arguments(plan, plan.configurations["2d"]) | {"parts": {"slope": 0, "norm": "none"}})
    assert [type(module).__name__ for module in relu.encoder[0][0]] == ["Conv2d", "ReLU"]


def test_a_scan_network_cannot_be_written_for_nnunet() -> None:
    with pytest.raises(
        ConfigError, match=r"uses vm_unet, which nnU-Net does not have\. Plan with --network plain_unet"
    ):
        to_nnunet(make_plan(volumes(10, (64, 64, 64))))


def change(text: str, edit) -> str:
    document = json.loads(text)
    edit(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.pop("transpose_forward"), "field 'transpose_forward' is missing"),
        (
            lambda d: d["configurations"]["2d"].update(inherits_from="2d"),
            "inherits_from '2d' is unknown or circular",
        ),
        (lambda d: d["configurations"]["2d"]["architecture"].update(network_class_name="a.Primus"), "'Primus' is not"),
        (in_2d(norm_op="torch.nn.GroupNorm"), r"arch_kwargs\.norm_op is 'torch.nn.GroupNorm' in place of"),
        (in_2d(norm_op_kwargs={"momentum": 0.2}), r"arch_kwargs: momentum is not known"),
        (
            in_2d(conv_op="torch.nn.modules.conv.Conv3d"),
            r"conv_op is .*Conv3d.* which plain_unet does not",
        ),
        (in_2d(nonlin="torch.nn.GELU"), r"arch_kwargs\.nonlin is 'torch.nn.GELU'"),
        (in_2d(nonlin_first=True), r"arch_kwargs\.nonlin_first is True, which plain_unet does not have"),
        (lambda d: d["configurations"]["2d"].update(normalization_schemes=["Mine"]), "differ in normalisation"),
        (lambda d: d.update(configurations={}), "no configuration with a patch size"),
        (lambda d: d.update(configurations=["2d"]), "no plans file of nnU-Net"),
    ],
)
def test_a_plans_file_that_cannot_be_followed_says_why(edit, message: str) -> None:
    plans, dataset = their_file("mr_hippocampus_tiny")
    with pytest.raises(ConfigError, match=message):
        from_nnunet(change(plans, edit), dataset)
    with pytest.raises(ConfigError, match=r"nnUNetPlans\.json: not a valid JSON plans file"):
        from_nnunet("{", dataset)
