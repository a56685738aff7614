"""The plan of a model that nnU-Net has trained, so that it predicts here what it predicts there.

Other than a plan taken over for a training of ours (nnunet_files.py), it keeps nnU-Net's conventions: axes as they are
stored, the order of channels, clipped interpolation. Plans files of nnU-Net 2.0 and 2.1, which describe the network in
fields of the configuration, are read as well.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from medmamba.errors import ConfigError
from medmamba.plans.json_record import as_written, read_object
from medmamba.plans.nnunet_files import from_nnunet
from medmamba.plans.schema import Mirroring, NetworkPlan, Plan

STORED_AXES = ("SimpleITKIO", "NibabelIO", "NaturalImage2DIO", "Tiff3DIO")
"""Readers of nnU-Net that take axes as they are stored."""
CANONICAL_AXES = ("SimpleITKIOWithReorient", "NibabelIOWithReorient")
OLD_FIELDS: tuple[str, ...] = (
    "UNet_class_name",
    "n_conv_per_stage_encoder",
    "n_conv_per_stage_decoder",
    "conv_kernel_sizes",
)
OLD_FIELDS += ("pool_op_kernel_sizes", "UNet_base_num_features", "unet_max_num_features")
SAMPLING = {"is_seg", "order", "order_z", "force_separate_z"}
"""Arguments of nnU-Net's resampling."""


def trained_plan(
    plans: bytes,
    dataset: bytes,
    configuration: str,
    mirror_axes: Sequence[int],
    *,
    network: str | None = None,
    source: str = "plans.json",
) -> Plan:
    """The plan with one trained configuration, and with its first stage if it is the second of a cascade.

    ``mirror_axes`` are the axes of the patch that its checkpoint allows; ``network`` is one of
    :data:`~.families.ORIGINALS` whose trainer builds it in place of the planned one. Raises ConfigError as
    ``from_nnunet``, and for plans of nnU-Net 1 and for a reader, resampling or preprocessor that is not known here.
    """
    document = read_object(plans, source, "plans file")
    description = read_object(dataset, "dataset.json", "dataset description")
    if "plans_per_stage" in document or "configurations" not in document:
        raise ConfigError(f"{source}: plans of nnU-Net 1, whose models are not read. Train with nnU-Net 2 or here.")
    with as_written(source, "plans file of nnU-Net 2", "Restore the file."):
        wanted = _with_first_stage(document["configurations"], configuration, source)
        parts = {name: _modern(_resolved(document["configurations"], name, source), source, name) for name in wanted}
        for name, part in parts.items():
            _refuse_other_steps(part, f"{source}: configuration {name!r}")
        reader = str(document.get("image_reader_writer", "SimpleITKIO"))
        if reader not in (*STORED_AXES, *CANONICAL_AXES):
            raise ConfigError(f"{source}: image_reader_writer {reader!r} is not known. Convert the images and retrain.")
        description = {**description, "labels": _labels_in_order(description["labels"])}
        by_modality = document.get("foreground_intensity_properties_by_modality")
        statistics = document.get("foreground_intensity_properties_per_channel") or by_modality
        own = {**document, "configurations": parts, "foreground_intensity_properties_per_channel": statistics}
        forward = [int(axis) for axis in document["transpose_forward"]]
    plan = from_nnunet(json.dumps(own), json.dumps(description), source=source)
    mirroring = Mirroring(axes=sorted(mirror_axes))
    changed = {name: part.model_copy(update={"mirroring": mirroring}) for name, part in plan.configurations.items()}
    if network is not None:
        second = changed[configuration]
        changed[configuration] = second.model_copy(update={"network": _as_u_mamba(second.network, network)})
    return plan.model_copy(
        update={
            "configurations": changed,
            "default_configuration": configuration,
            "axis_order": [2 - axis for axis in forward],
            "conventions": "nnunet",
            "reorient": reader in CANONICAL_AXES,
        }
    )


def _as_u_mamba(planned: NetworkPlan, name: str) -> NetworkPlan:
    """U-Mamba's network on the numbers that were planned for another: one block in the deeper half of the stages.

    The decoder's list runs from the bottleneck up and is shortened at its end, as the authors' code does it.
    """
    stages = len(planned.strides)
    half = math.ceil(stages / 2)
    blocks, convs = planned.blocks_per_stage, planned.decoder_convs or [2] * (stages - 1)
    return planned.model_copy(
        update={
            "name": name,
            "blocks_per_stage": [*blocks[:half], *[1] * (stages - half)],
            "decoder_convs": [*convs[:half], *[1] * (stages - 1 - half)],
            "state_size": 16,
            "routes": "forward",
            "use_scan": True,
            "parts": None,
        }
    )


def trained_with(plans: Mapping[str, Any], configuration: str) -> dict[str, str]:
    """What of a plans file decides what a network sees, field by field as text; weights show the rest.

    Empty for a checkpoint that holds no such plans.
    """
    try:
        part = _resolved(plans["configurations"], configuration, "plans")
        fields = {name: part[name] for name in ("spacing", "normalization_schemes", "use_mask_for_norm")}
        fields["transpose_forward"] = plans["transpose_forward"]
    except (KeyError, TypeError, AttributeError, ConfigError):
        return {}
    return {name: json.dumps(value, default=str) for name, value in fields.items()}


def joined_plan(plans: Mapping[str, Plan]) -> Plan:
    """One plan from those of several trained configurations, by the folder of each.

    Raises ConfigError, naming two folders and the field, where they were planned or trained differently.
    """
    (first, plan), *others = plans.items()
    configurations = dict(plan.configurations)
    own = {"configurations", "default_configuration", "decisions", "medmamba_version"}
    for folder, other in others:
        for field in Plan.model_fields.keys() - own:
            if getattr(plan, field) != getattr(other, field):
                cure = "Convert them one by one."
                raise ConfigError(f"{folder}: its plan differs from that of {first} in {field}. {cure}")
        configurations |= {other.default_configuration: other.default} | {
            name: part for name, part in other.configurations.items() if name not in configurations
        }
    order = ("3d_cascade_fullres", "3d_fullres", "3d_lowres", "2d")
    trained = [other.default_configuration for other in plans.values()]
    best = next((name for name in order if name in trained), trained[0])
    return Plan.model_validate(
        plan.model_copy(update={"configurations": configurations, "default_configuration": best})
    )


def _with_first_stage(parts: Mapping[str, Any], name: str, source: str) -> list[str]:
    if name not in parts:
        raise ConfigError(f"{source}: no configuration {name!r}, which was trained. Restore the file.")
    before = _resolved(parts, name, source).get("previous_stage")
    return [name] if before is None or before == name else [*_with_first_stage(parts, before, source), name]


def _resolved(parts: Mapping[str, Any], name: str, source: str, heirs: tuple[str, ...] = ()) -> dict[str, Any]:
    """A configuration with what it inherits filled in."""
    if name in heirs or name not in parts:
        raise ConfigError(
            f"{source}: {heirs[0] if heirs else name!r}: inherits_from {name!r} is unknown or circular. Correct it."
        )
    own = {key: value for key, value in parts[name].items() if key != "inherits_from"}
    parent = parts[name].get("inherits_from")
    return own if parent is None else _resolved(parts, parent, source, (*heirs, name)) | own


def _modern(part: Mapping[str, Any], source: str, name: str) -> dict[str, Any]:
    """A configuration with its network in the entry ``architecture``, as nnU-Net 2.2 and newer write it."""
    if "architecture" in part:
        return dict(part)
    if missing := [field for field in OLD_FIELDS if field not in part]:
        raise ConfigError(
            f"{source}: configuration {name!r} has neither architecture nor {missing[0]}. Restore the file."
        )
    stages, plain = len(part["n_conv_per_stage_encoder"]), part["UNet_class_name"] == "PlainConvUNet"
    base, most = int(part["UNet_base_num_features"]), int(part["unet_max_num_features"])
    numbers = {
        "n_stages": stages,
        "features_per_stage": [min(base * 2**stage, most) for stage in range(stages)],
        "kernel_sizes": part["conv_kernel_sizes"],
        "strides": part["pool_op_kernel_sizes"],
        "n_conv_per_stage" if plain else "n_blocks_per_stage": part["n_conv_per_stage_encoder"],
        "n_conv_per_stage_decoder": part["n_conv_per_stage_decoder"],
    }
    network = {"network_class_name": part["UNet_class_name"], "arch_kwargs": numbers}
    return {key: value for key, value in part.items() if key not in OLD_FIELDS} | {"architecture": network}


def _refuse_other_steps(part: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError for another preprocessor or resampling than nnU-Net's default one."""
    given = part.get("preprocessor_name", "DefaultPreprocessor")
    if given != "DefaultPreprocessor":
        raise ConfigError(
            f"{where}: preprocessor_name is {given!r}, which is not known here. Retrain with the default one."
        )
    for kind, order in (("data", 3), ("probabilities", 1)):
        function = part.get(f"resampling_fn_{kind}", "resample_data_or_seg_to_shape")
        arguments = part.get(f"resampling_fn_{kind}_kwargs", {"order": order})
        usual = {"is_seg": False, "order": order, "order_z": 0, "force_separate_z": None}
        given = {key: value for key, value in arguments.items() if usual.get(key, arguments) != value}
        if function != "resample_data_or_seg_to_shape" or given or not set(arguments) <= SAMPLING:
            what = f"{function} with {given or dict(arguments)}"
            raise ConfigError(
                f"{where}: resampling_fn_{kind} is {what:.120}, which is not known here. Retrain with the default."
            )


def _labels_in_order(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Labels by their value, which is the number of their output channel; regions in the order of the file.

    A list of one value is that value, unless another list makes regions of all.
    """
    if any(isinstance(value, list) and len(value) > 1 for value in labels.values()):
        return {name: value for name, value in labels.items() if name == "background" or set(_values(value)) != {0}}
    single = {name: _values(value)[0] for name, value in labels.items()}
    return dict(sorted(single.items(), key=lambda entry: entry[1]))


def _values(value: Any) -> list[int]:
    return [int(one) for one in value] if isinstance(value, list) else [int(value)]
