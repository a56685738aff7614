"""nnU-Net's plans files: read as a plan of ours, and ours written as one where nnU-Net can express it.

nnU-Net's arrays run (z, y, x) where ours run (i, j, k) = (x, y, z), so its array axis a is our axis 2 - a; behind the
transposition both agree, and patches, spacings and strides are taken over as they stand. 2D images without millimetres
have the same order in both. Files of nnU-Net 2.2 and newer are read (those with an "architecture" entry).
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from medmamba.errors import ConfigError
from medmamba.plans.families import family
from medmamba.plans.fingerprint import PIXEL_SPACING
from medmamba.plans.json_record import as_written, read_object
from medmamba.plans.normalizers import NORMALIZERS
from medmamba.plans.schema import Configuration, ConvolutionParts, Decision, NetworkPlan, Normalization, Plan
from medmamba.version import __version__

SCHEME_OF = {row.nnunet: name for name, row in NORMALIZERS.items() if row.nnunet is not None}

NETWORK_OF = {"PlainConvUNet": "plain_unet", "ResidualEncoderUNet": "residual_unet"}
NETWORK_CLASS = {ours: theirs for theirs, ours in NETWORK_OF.items()}
BLOCKS_FIELD = {"plain_unet": "n_conv_per_stage", "residual_unet": "n_blocks_per_stage"}
STATISTICS = ("mean", "std", "percentile_00_5", "percentile_99_5")
IMAGE_2D_READER = "NaturalImage2DIO"
IMAGE_2D_ENDINGS = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")


def is_nnunet(text: str | bytes, *, source: str = "plan.json") -> bool:
    """Whether a JSON text is an nnU-Net plans file; raises ConfigError when it is no JSON object."""
    return "plans_name" in read_object(text, source, "plan")


def from_nnunet(plans: str | bytes, dataset: str | bytes, *, source: str = "nnUNetPlans.json") -> Plan:
    """Our plan from the text of an nnU-Net plans file and of its dataset.json, which names channels and labels.

    Raises ConfigError for what we cannot follow: an unknown network class, other parts of a network, an unknown
    normalisation, a missing field.
    """
    document = read_object(plans, source, "plans file")
    description = read_object(dataset, "dataset.json", "dataset description")
    with as_written(source, "plans file of nnU-Net 2.2 or newer", "Restore the file."):
        try:
            return _plan(document, description, source)
        except KeyError as error:
            raise ConfigError(
                f"{source}: field {error} is missing. Is this a plans file of nnU-Net 2.2 or newer?"
            ) from None


def to_nnunet(plan: Plan) -> str:
    """The text of an nnU-Net plans file with the same grids, patches, batches and networks.

    Raises ConfigError for what nnU-Net cannot express: a network that it does not have.
    """
    flat = plan.default.spacing_mm is None and plan.file_ending.lower() in IMAGE_2D_ENDINGS
    forward = plan.axis_order if flat else [2 - axis for axis in plan.axis_order]
    document: dict[str, Any] = {
        "dataset_name": nnunet_name(plan.dataset_name),
        "plans_name": "medmambaPlans",
        "transpose_forward": forward,
        "transpose_backward": np.argsort(forward).tolist(),
        "image_reader_writer": IMAGE_2D_READER if flat else "SimpleITKIO",
        "original_median_spacing_after_transp": _original(plan, "median_spacing", float),
        "original_median_shape_after_transp": _original(plan, "median_shape_after_crop", round),
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(channel): {key: getattr(part, key) for key in STATISTICS}
            for channel, part in enumerate(plan.normalization)
        },
        "configurations": {name: _their_configuration(plan, part) for name, part in plan.configurations.items()},
    }
    for name, part in plan.configurations.items():
        if part.previous_stage is not None:
            document["configurations"][part.previous_stage]["next_stage"] = name
    return json.dumps(document, indent=4, allow_nan=False) + "\n"


def nnunet_name(name: str) -> str:
    """The dataset name in nnU-Net's form, DatasetNNN_NAME; NNN is 900 without a number."""
    parts = re.fullmatch(r"(?:Dataset|Task)(\d{1,3})_(.*)", name)
    number, rest = (int(parts[1]), parts[2]) if parts else (900, name)
    return f"Dataset{number:03d}_{re.sub('[^A-Za-z0-9_]+', '_', rest) or 'dataset'}"


def _plan(document: Mapping[str, Any], description: Mapping[str, Any], source: str) -> Plan:
    flat = document.get("image_reader_writer") == IMAGE_2D_READER
    forward = [int(axis) for axis in document["transpose_forward"]]
    parts = {name: _inherited(document["configurations"], name, source) for name in document["configurations"]}
    usable = {name: part for name, part in parts.items() if "patch_size" in part}
    if not usable:
        raise ConfigError(f"{source}: no configuration with a patch size in it. Restore this file.")
    labels, regions, region_order = _labels(description)
    made = {name: _configuration(name, part, flat, source) for name, part in usable.items()}
    names = description.get("channel_names") or description["modality"]
    return Plan(
        medmamba_version=__version__,
        dataset_name=document["dataset_name"],
        dataset_hash="",
        fingerprint_hash="",
        channel_names=[names[key] for key in sorted(names, key=int)],
        labels=labels,
        regions=regions,
        region_order=region_order,
        ignore_label=description["labels"].get("ignore"),
        file_ending=description["file_ending"],
        axis_order=forward if flat else [2 - axis for axis in forward],
        normalization=_normalization(document, usable, source),
        configurations=made,
        default_configuration=next(name for name in ("3d_fullres", "2d", *made) if name in made),
        decisions=[_taken_over("nnunet_plans", document.get("plans_name", ""), source)],
    )


def _inherited(
    configurations: Mapping[str, Any], name: str, source: str, heirs: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A configuration with what it inherits filled in; ``heirs`` are those that inherit from it."""
    if name in heirs or name not in configurations:
        raise ConfigError(f"{source}: {heirs[0]!r}: inherits_from {name!r} is unknown or circular. Correct it.")
    own, parent = configurations[name], configurations[name].get("inherits_from")
    return own if parent is None else _inherited(configurations, parent, source, (*heirs, name)) | own


def _configuration(name: str, part: Mapping[str, Any], flat: bool, source: str) -> Configuration:
    patch = [int(size) for size in part["patch_size"]]
    spacing = [float(value) for value in part["spacing"]]
    architecture = part["architecture"]
    class_name = architecture["network_class_name"].rpartition(".")[2]
    if class_name not in NETWORK_OF:
        raise ConfigError(
            f"{source}: configuration {name!r}: network class {class_name!r} is not one of {', '.join(NETWORK_OF)}. "
            f"Plan the dataset with medmamba instead."
        )
    numbers = architecture["arch_kwargs"]
    dims: Literal[2, 3] = 2 if len(patch) == 2 else 3
    ours = NETWORK_OF[class_name]
    stages = int(numbers["n_stages"])
    parts = _parts(numbers, ours, dims, f"{source}: configuration {name!r}")
    network = NetworkPlan(
        name=ours,
        spatial_dims=dims,
        stem="conv",
        strides=[list(stride) for stride in numbers["strides"]],
        features_per_stage=list(numbers["features_per_stage"]),
        blocks_per_stage=_per_stage(numbers[BLOCKS_FIELD[ours]], stages),
        state_size=1,
        routes="none",
        kernel_sizes=[list(kernel) for kernel in numbers["kernel_sizes"]],
        deep_supervision=True,
        use_scan=False,
        decoder_convs=_per_stage(numbers["n_conv_per_stage_decoder"], stages - 1),
        parts=None if parts == ConvolutionParts() else parts,
    )
    return Configuration(
        name=name,
        spatial_dims=dims,
        spacing_mm=None if flat else spacing,
        median_shape=[float(size) for size in part["median_image_size_in_voxels"]],
        patch_size=patch,
        batch_size=int(part["batch_size"]),
        batch_dice=bool(part["batch_dice"]),
        network=network,
        previous_stage=part.get("previous_stage"),
        decisions=[_taken_over("configuration", name, source)],
    )


def _per_stage(given: Any, stages: int) -> list[int]:
    return [given] * stages if isinstance(given, int) else list(given)


def _same_parts(dims: int) -> dict[str, Any]:
    """Settings common to all networks that nnU-Net plans, and to medmamba.networks.planned.plain_unet."""
    return {
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def _their_parts(parts: ConvolutionParts, dims: int) -> dict[str, Any]:
    """The parts of a network as nnU-Net names them."""
    written = _same_parts(dims) | {"conv_bias": parts.bias}
    norms = {"instance": f"torch.nn.InstanceNorm{dims}d", "batch": f"torch.nn.BatchNorm{dims}d", "none": None}
    if parts.norm != "instance":
        written["norm_op"] = norms[parts.norm]
    written["norm_op_kwargs"] = {"eps": parts.eps, "affine": parts.affine} if norms[parts.norm] else None
    if parts.dropout:
        written |= {"dropout_op": f"torch.nn.Dropout{dims}d", "dropout_op_kwargs": {"p": parts.dropout}}
    if parts.slope != 0.01:
        written["nonlin_kwargs"] = {"inplace": True, "negative_slope": parts.slope}
    return written


def _parts(numbers: Mapping[str, Any], network: str, dims: int, where: str) -> ConvolutionParts:
    """The parts of a network; raises ConfigError, naming the field, for those that ours cannot have."""
    same = _same_parts(dims)
    given: dict[str, Any] = same | dict(numbers)
    read = {"n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage_decoder"}
    read |= {BLOCKS_FIELD[network], "conv_bias", "norm_op_kwargs", "dropout_op_kwargs", "nonlin_kwargs"}
    known: dict[str, dict[str, Any]] = {
        "conv_op": {f"Conv{dims}d": None},
        "norm_op": {f"InstanceNorm{dims}d": "instance", f"BatchNorm{dims}d": "batch", "None": "none"},
        "dropout_op": {f"Dropout{dims}d": True, "None": False},
        "nonlin": {"LeakyReLU": None, "ReLU": 0.0},
    }
    chosen: dict[str, Any] = {}
    for field, value in given.items():
        short = str(value).rpartition(".")[2]
        if field in known and short in known[field]:
            chosen[field] = known[field][short]
        elif field not in read and value != same.get(field, False):
            instead = f" in place of {same[field]!r}" if field in same else ""
            raise ConfigError(
                f"{where}: arch_kwargs.{field} is {value!r:.80}{instead}, which {network} does not have. Plan the "
                f"dataset with medmamba instead."
            )
    norm, nonlin = given["norm_op_kwargs"] or {}, given["nonlin_kwargs"] or {}
    if extra := [*(set(norm) - {"eps", "affine"}), *(set(nonlin) - {"inplace", "negative_slope"})]:
        raise ConfigError(
            f"{where}: arch_kwargs: {extra[0]} is not known here. Plan the dataset with medmamba instead."
        )
    slope = chosen["nonlin"]
    return ConvolutionParts(
        bias=bool(given["conv_bias"]),
        norm=chosen["norm_op"],
        affine=bool(norm.get("affine", chosen["norm_op"] == "batch")),
        eps=float(norm.get("eps", 1e-5)),
        slope=float(nonlin.get("negative_slope", 0.01)) if slope is None else slope,
        dropout=float((given["dropout_op_kwargs"] or {}).get("p", 0.5)) if chosen["dropout_op"] else 0.0,
    )


def _normalization(document: Mapping[str, Any], parts: Mapping[str, Any], source: str) -> list[Normalization]:
    wanted = {(tuple(part["normalization_schemes"]), tuple(part["use_mask_for_norm"])) for part in parts.values()}
    if len(wanted) != 1:
        raise ConfigError(f"{source}: the configurations differ in normalisation, which one plan cannot express.")
    ((schemes, masks),) = wanted
    result = []
    for channel, (scheme, use_mask) in enumerate(zip(schemes, masks, strict=True)):
        if scheme not in SCHEME_OF:
            raise ConfigError(f"{source}: normalisation {scheme!r} is not one of {', '.join(SCHEME_OF)}.")
        facts = document["foreground_intensity_properties_per_channel"][str(channel)]
        statistics = {key: facts.get(key) for key in STATISTICS}
        result.append(Normalization(scheme=SCHEME_OF[scheme], use_mask=bool(use_mask), **statistics))
    return result


def _labels(
    description: Mapping[str, Any],
) -> tuple[dict[str, int], dict[str, list[str]] | None, list[str] | None]:
    """Labels by name, regions by the names they join, and the name that is written for each region, in their order."""
    given = {name: value for name, value in description["labels"].items() if name != "ignore"}
    if all(isinstance(value, int) for value in given.values()):
        return given, None, None
    single = {value: name for name, value in given.items() if isinstance(value, int)}
    joined = {name: [value] if isinstance(value, int) else value for name, value in given.items()}
    named = {v: single.get(v, f"label_{v}") for v in sorted({v for values in joined.values() for v in values})}
    regions = {name: [named[v] for v in values] for name, values in joined.items() if name != "background"}
    order = [named[value] for value in description.get("regions_class_order") or []]
    labels = {"background": 0} | {name: value for value, name in named.items() if value != 0}
    return labels, regions, order or [parts[-1] for parts in regions.values()]


def _their_configuration(plan: Plan, part: Configuration) -> dict[str, Any]:
    network = part.network
    if network.name not in NETWORK_CLASS:
        raise ConfigError(
            f"configuration {part.name!r} uses {network.name}, which nnU-Net does not have. Plan with --network "
            f"plain_unet or residual_unet to write a plans file for nnU-Net."
        )
    if unknown := [n.scheme for n in plan.normalization if NORMALIZERS[n.scheme].nnunet is None]:
        raise ConfigError(f"normalisation {unknown[0]!r} does not exist in nnU-Net, so no plans file can name it.")
    dims = part.spatial_dims
    stages = len(network.strides)
    convs = network.decoder_convs or [family(network.name).decoder_convs] * (stages - 1)
    spacing = part.spacing_mm or list(PIXEL_SPACING[-dims:])
    sampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    written: dict[str, Any] = {
        "data_identifier": f"medmambaPlans_{part.name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": part.batch_size,
        "patch_size": part.patch_size,
        "median_image_size_in_voxels": part.median_shape,
        "spacing": spacing,
        "normalization_schemes": [NORMALIZERS[n.scheme].nnunet for n in plan.normalization],
        "use_mask_for_norm": [n.use_mask for n in plan.normalization],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": sampling,
        "resampling_fn_seg_kwargs": {**sampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**sampling, "order": 1},
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{NETWORK_CLASS[network.name]}",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": network.features_per_stage,
                "kernel_sizes": network.kernel_sizes,
                "strides": network.strides,
                BLOCKS_FIELD[network.name]: network.blocks_per_stage,
                "n_conv_per_stage_decoder": convs,
                **_their_parts(network.parts or ConvolutionParts(), dims),
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": part.batch_dice,
    }
    if part.previous_stage is not None:
        written["previous_stage"] = part.previous_stage
    return written


def _original(plan: Plan, field: str, convert: Any) -> list[Any]:
    """A median over the original images in plan axes, from the decision that it went into."""
    known = next((d.inputs[field] for d in plan.decisions if field in d.inputs), None)
    if known is not None:
        return [convert(known[axis]) for axis in plan.axis_order]
    largest = max(plan.configurations.values(), key=lambda part: math.prod(part.median_shape))
    taken = (largest.spacing_mm if field == "median_spacing" else largest.median_shape) or []
    return [convert(value) for value in [1.0] * (3 - len(taken)) + taken]


def _taken_over(name: str, value: Any, source: str) -> Decision:
    return Decision(
        name=name,
        value=value,
        inputs={"file": source},
        rule="as in the plans file",
        reason="Taken over from nnU-Net, which has decided it.",
        source="nnU-Net",
    )
