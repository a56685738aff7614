"""Compare planning with nnU-Net's own decisions: ``python tests/plans/nnunet_decisions.py CASE.json...``

A case file holds a fingerprint and the decisions of nnU-Net's planners about it; the file of function cases holds
single steps. Integers must be equal; spacings and medians may differ by a relative 1e-9. Exit code: 0 all equal,
1 differences, 2 a file that cannot be read.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunet_planner import (
    NnunetGrid,
    nnunet_folds,
    plain_unet_activations,
    plan_as_nnunet,
    residual_unet_activations,
)

from medmamba.errors import InputError, MedmambaError
from medmamba.geometry.grid import separate_axis
from medmamba.plans.automatic_choices import channel_normalization
from medmamba.plans.families import RESIDUAL_BLOCKS
from medmamba.plans.fingerprint import ChannelIntensity
from medmamba.plans.normalizers import NORMALIZERS
from medmamba.plans.patch import MIN_EDGE, PoolingPlan, plan_pooling
from medmamba.plans.spacing import new_shape

RELATIVE_TOLERANCE = 1e-9
"""For spacings and medians, which are float64 sums of products in both programs."""

Check = tuple[str, Any, Any]
"""What was compared, our value, the expected value."""


def case_checks(case: dict[str, Any]) -> Iterator[Check]:
    """Every comparison that a dataset case asks for."""
    expected = case["expected"]
    spacings, shapes = np.array(case["fingerprint"]["spacings"]), np.array(case["fingerprint"]["shapes_after_crop"])
    yield from _normalization_checks(case)
    for variant in expected["variants"]:
        name = f"{variant['planner']} {variant['gpu_memory_gb']:g} GB"
        plan = plan_as_nnunet(
            spacings,
            shapes,
            num_labels=len(case["dataset"]["labels"]),
            num_training=case["dataset"]["num_training"],
            preset=variant["planner"],
            device_memory_gb=variant["gpu_memory_gb"],
        )
        order = plan.axis_order
        yield f"{name}: target_spacing", list(plan.target_spacing), expected["target_spacing"]
        yield f"{name}: transpose_forward", list(order), expected["transpose_forward"]
        yield f"{name}: transpose_backward", np.argsort(order).tolist(), expected["transpose_backward"]
        original = [float(value) for value in np.median(spacings, axis=0)[list(order)]]
        yield f"{name}: original spacing", original, expected["original_median_spacing_after_transpose"]
        voxels = [round(float(value)) for value in np.median(shapes, axis=0)[list(order)]]
        yield f"{name}: original shape", voxels, expected["original_median_shape_after_transpose"]
        yield f"{name}: configurations_planned", plan.configuration_names, variant["configurations_planned"]
        yield f"{name}: lowres_search_steps", plan.lowres_steps, variant["lowres_search_steps"]
        for key, wanted in variant["configurations"].items():
            ours = describe(plan.configurations[key]) if key in plan.configurations else {}
            for field, value in wanted.items():
                yield f"{name}: {key}.{field}", ours.get(field), value


def describe(grid: NnunetGrid) -> dict[str, Any]:
    """A configuration in the words of the case files."""
    pooling = grid.pooling
    fields = {
        "spacing": list(grid.spacing),
        "median_image_size_in_voxels": list(grid.median_shape),
        "patch_size": list(pooling.patch_size),
        "batch_size": grid.batch_size,
        "batch_dice": grid.batch_dice,
        "n_stages": len(pooling.strides),
        "features_per_stage": list(grid.features),
        "strides": [list(stride) for stride in pooling.strides],
        "num_pool_per_axis": list(pooling.num_pool_per_axis),
        "kernel_sizes": [list(kernel) for kernel in pooling.kernel_sizes],
        "blocks_per_stage_encoder": list(grid.encoder_blocks),
        "blocks_per_stage_decoder": list(grid.decoder_blocks),
        "feature_map_estimate": grid.search.cost,
        "patch_size_search": [
            {"patch_size": list(patch), "feature_map_estimate": cost} for patch, cost in grid.search.steps
        ],
    }
    if grid.growth_steps is not None:
        fields["spacing_growth_steps"] = grid.growth_steps
    return fields


def _normalization_checks(case: dict[str, Any]) -> Iterator[Check]:
    expected, fingerprint = case["expected"], case["fingerprint"]
    relative = fingerprint["median_relative_size_after_cropping"]
    names = [case["dataset"]["channel_names"][key] for key in sorted(case["dataset"]["channel_names"], key=int)]
    properties = fingerprint["foreground_intensity_properties_per_channel"]
    chosen = [
        channel_normalization(name, ChannelIntensity(**properties[str(channel)]), relative)[0]
        for channel, name in enumerate(names)
    ]
    schemes = [NORMALIZERS[result.scheme].nnunet for result in chosen]
    yield "normalization_schemes", schemes, expected["normalization_schemes"]
    yield "use_mask_for_norm", [result.use_mask for result in chosen], expected["use_mask_for_norm"]


def function_checks(cases: dict[str, Any]) -> Iterator[Check]:
    """Every comparison of single planning steps; steps of training and inference are checked where those live."""
    for number, item in enumerate(cases.get("network_topology", [])):
        ours = plan_pooling(item["spacing"], item["patch_size_in"])
        name = f"network_topology[{number}]"
        yield f"{name}.min_feature_map_edge", MIN_EDGE, item["min_feature_map_edge"]
        yield f"{name}.num_pool_per_axis", list(ours.num_pool_per_axis), item["num_pool_per_axis"]
        yield f"{name}.strides", [list(s) for s in ours.strides], item["strides"]
        yield f"{name}.kernel_sizes", [list(k) for k in ours.kernel_sizes], item["kernel_sizes"]
        yield f"{name}.patch_size_out", list(ours.patch_size), item["patch_size_out"]
        yield f"{name}.must_be_divisible_by", list(ours.divisor), item["must_be_divisible_by"]
    for number, item in enumerate(cases.get("new_shape", [])):
        ours_shape = new_shape(item["shape"], item["spacing"], item["new_spacing"])
        yield f"new_shape[{number}]", list(ours_shape), item["new_shape"]
    for number, item in enumerate(cases.get("separate_axis_resampling", [])):
        axis = separate_axis(item["current_spacing"], item["new_spacing"])
        yield f"separate_axis_resampling[{number}]", [axis is not None, axis], [item["separate"], item["axis"]]
    for number, item in enumerate(cases.get("crossval_split", [])):
        folds = nnunet_folds(item["identifiers_sorted"], n_folds=item["n_splits"], seed=item["seed"])
        yield f"crossval_split[{number}]", [fold["val"] for fold in folds], item["val_per_fold"]
    for number, item in enumerate(cases.get("feature_map_estimate", [])):
        strides = tuple(tuple(stride) for stride in item["strides"])
        pooling = PoolingPlan(tuple(item["patch_size"]), strides, ((3,) * len(item["patch_size"]),) * len(strides))
        features, classes = item["features_per_stage"], item["num_classes"]
        plain = plain_unet_activations(pooling, features, classes)
        residual = residual_unet_activations(pooling, features, RESIDUAL_BLOCKS[: len(strides)], classes)
        yield f"feature_map_estimate[{number}].plain", plain, item["plain_unet_2_convs_per_stage"]
        wanted = next(value for key, value in item.items() if key.startswith("residual_encoder"))
        yield f"feature_map_estimate[{number}].residual", residual, wanted


def checks(document: dict[str, Any]) -> Iterator[Check]:
    """Comparisons of a case file of either kind."""
    return case_checks(document) if "expected" in document else function_checks(document)


def differences(document: dict[str, Any]) -> tuple[int, list[str]]:
    """Number of comparisons made, and one line for each that failed."""
    count, lines = 0, []
    for name, ours, wanted in checks(document):
        count += 1
        if not equal(ours, wanted):
            lines.append(f"{name}: ours {ours}, expected {wanted}")
    return count, lines


def equal(ours: Any, wanted: Any) -> bool:
    """Exactly equal, except that numbers with a fraction may differ by the relative tolerance."""
    if isinstance(wanted, bool) or isinstance(ours, bool) or wanted is None or isinstance(wanted, str):
        return type(ours) is type(wanted) and ours == wanted
    if isinstance(wanted, dict):
        return (
            isinstance(ours, dict) and ours.keys() == wanted.keys() and all(equal(ours[k], wanted[k]) for k in wanted)
        )
    if isinstance(wanted, list):
        if not isinstance(ours, list) or len(ours) != len(wanted):
            return False
        return all(equal(a, b) for a, b in zip(ours, wanted, strict=True))
    if not isinstance(ours, (int, float)):
        return False
    if isinstance(wanted, int):
        return bool(ours == wanted)
    return math.isclose(ours, wanted, rel_tol=RELATIVE_TOLERANCE, abs_tol=0.0)


def read_case(path: Path) -> dict[str, Any]:
    """The decoded JSON of a case file; raises InputError for anything else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file. Give the case files to compare.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}. Restore this file.") from None
    if not isinstance(document, dict) or not ({"expected", "fingerprint"} <= document.keys() or "source" in document):
        raise InputError(f"{path}: neither a dataset case (fingerprint, expected) nor function cases.")
    return document


def main(arguments: Sequence[str]) -> int:
    """Compare the given files, print one line per file and per difference, and return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python tests/plans/nnunet_decisions.py CASE.json...")
        return 0 if arguments else 2
    total = failed = 0
    try:
        for argument in arguments:
            count, lines = differences(read_case(Path(argument)))
            total, failed = total + count, failed + len(lines)
            print(f"{argument}: {count - len(lines)} of {count} equal")
            for line in lines:
                print(f"  {line}")
    except (MedmambaError, KeyError) as error:
        missing = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
        print(f"{argument}: {missing}" if isinstance(error, KeyError) else missing, file=sys.stderr)
        return 2
    print(f"{total - failed} of {total} decisions equal in {len(arguments)} files")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
