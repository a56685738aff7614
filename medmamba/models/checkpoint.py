"""Checkpoints: weights and optimiser as safetensors, everything else as JSON, two generations, hashes checked on load.

    <fold>/checkpoints/last/   model.safetensors  optimizer.safetensors  state.json
                            (training.safetensors beside averaged weights)
    <fold>/checkpoints/prev/   the generation before
    <fold>/checkpoints/best/   by validation Dice, weights only

A generation is written beside its place and renamed as a whole, so a killed run never leaves half a checkpoint.
"""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from medmamba.disk.atomic import replace_folder
from medmamba.disk.own_files import file_sha256
from medmamba.errors import ConfigError
from medmamba.networks.scan_backend import scan_backend_of
from medmamba.networks.weight_file import load_tensors
from medmamba.plans.json_record import as_written, read_stored, sealed
from medmamba.version import __version__

SCHEMA_VERSION = 1
GENERATIONS = ("last", "prev")
KIND = "state of a checkpoint"


def save_checkpoint(
    folder: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    state: Mapping[str, Any],
    *,
    generation: str = "last",
    averaged: nn.Module | None = None,
) -> None:
    """Write one generation below ``folder``; a new ``last`` moves the present one to ``prev``.

    ``state`` must be JSON-able; hashes, schema, versions and the random state of torch are added. With ``averaged``
    weights these are the model, and those of the network in training lie beside them in training.safetensors.
    """
    if generation == "last" and (folder / "last").is_dir():
        with replace_folder(folder / "prev") as part:
            for path in (folder / "last").iterdir():
                os.link(path, part / path.name)  # the same bytes under a second name: no copy, no moment without "last"
    with replace_folder(folder / generation) as part:
        model = network if averaged is None else averaged
        (part / "model.safetensors").write_bytes(save(_contiguous(model.state_dict())))
        record = {**state, "versions": versions(network), "schema_version": SCHEMA_VERSION}
        if optimizer is not None:
            if averaged is not None:
                (part / "training.safetensors").write_bytes(save(_contiguous(network.state_dict())))
            tensors, record["optimizer"] = _split_optimizer(optimizer.state_dict())
            (part / "optimizer.safetensors").write_bytes(save(_contiguous(tensors)))
            record["torch_random_state"] = torch.get_rng_state().numpy().tobytes().hex()
            if (device := _device_of(network)).type == "cuda":
                record["cuda_random_state"] = torch.cuda.get_rng_state(device).numpy().tobytes().hex()
        record["sha256"] = {path.name: file_sha256(path) for path in sorted(part.glob("*.safetensors"))}
        (part / "state.json").write_text(json.dumps(sealed(record), indent=1) + "\n")


def load_checkpoint(
    folder: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    generation: str | None = None,
    *,
    averaged: nn.Module | None = None,
) -> dict[str, Any]:
    """Load the newest whole generation below ``folder`` into network and optimiser and return its state.

    A damaged ``last`` falls back to ``prev`` with a warning; when none is whole, ConfigError names both reasons.
    Never starts anew on its own. With an optimiser (to resume training) a change of versions is a warning, because
    results then need not be bit-identical.
    """
    reasons = []
    for name in (generation,) if generation else GENERATIONS:
        try:
            state = read_state(folder / name)
        except ConfigError as error:
            reasons.append(str(error))
            continue
        if reasons:
            warnings.warn(f"{reasons[0]} Continuing from the generation before ({folder / name}).", stacklevel=2)
        in_training = folder / name / "training.safetensors"
        model = folder / name / "model.safetensors"
        _load_weights(network, in_training if optimizer is not None and in_training.is_file() else model)
        if averaged is not None:
            _load_weights(averaged, model)
        if optimizer is not None:
            _restore(folder / name, state, network, optimizer)
        return state
    raise ConfigError(" ".join(reasons) if has_checkpoint(folder) else reasons[0])


def _restore(folder: Path, state: Mapping[str, Any], network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Optimiser and random state of a checkpoint."""
    with as_written(folder / "state.json", KIND, "Restore the file, or begin again with --restart."):
        _warn_of_other_versions(state.get("versions", {}), versions(network))
        if _grouping(state["optimizer"]) != _grouping(optimizer.state_dict()):
            raise ConfigError(
                f"{folder}: its optimiser groups the parameters in another way, as other versions of "
                "medmamba do. Continue with the version that began, or start anew from its weights with --init."
            )
        tensors = load_tensors(folder / "optimizer.safetensors")
        stored = _join_optimizer(tensors, state["optimizer"])
        for group, own in zip(stored["param_groups"], optimizer.param_groups, strict=True):
            group["fused"] = own.get("fused")  # of this device, not of the one where it began
        optimizer.load_state_dict(stored)
        torch.set_rng_state(_bytes(state["torch_random_state"]))
        if "cuda_random_state" in state and (device := _device_of(network)).type == "cuda":
            torch.cuda.set_rng_state(_bytes(state["cuda_random_state"]), device)


def _device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def read_state(folder: Path) -> dict[str, Any]:
    """The checked state of one generation: schema known, every file's SHA-256 as written."""
    path = folder / "state.json"
    if not path.exists():
        raise ConfigError(f"{folder}: no checkpoint here. Train first, or give the folder of a trained fold.")
    state = read_stored(path, dict[str, Any], KIND, "Restore the file.")
    if state.get("schema_version") != SCHEMA_VERSION:
        raise ConfigError(
            f"{folder}: checkpoint schema {state.get('schema_version')!r:.40}, this version reads {SCHEMA_VERSION}."
        )
    with as_written(path, KIND, "Restore the file."):
        hashes = {str(Path(name).name): str(value) for name, value in state["sha256"].items()}
        _ = hashes["model.safetensors"]
    for name, expected in hashes.items():
        if not (folder / name).is_file() or file_sha256(folder / name) != expected:
            raise ConfigError(f"{folder / name}: the file differs from what was saved (SHA-256); it is damaged.")
    return state


def versions(network: nn.Module) -> dict[str, str]:
    """What bit-identical results depend on: versions, and the scan backend of a network that scans."""
    backend = scan_backend_of(network, next(network.parameters()).device)
    scans = {} if backend == "none" else {"scan_backend": backend}
    return {"medmamba": __version__, "torch": torch.__version__, **scans}


def _warn_of_other_versions(stored: Mapping[str, str], present: Mapping[str, str]) -> None:
    changed = [f"{name} {stored[name]}, now {now}" for name, now in present.items() if stored.get(name, now) != now]
    if changed:
        warnings.warn(
            f"The checkpoint was written with {'; '.join(changed)}. Training continues, but not bit-identically.",
            stacklevel=3,
        )


def has_checkpoint(folder: Path) -> bool:
    """Whether any generation exists below ``folder``, whole or not."""
    return any((folder / name / "state.json").exists() for name in GENERATIONS)


def refuse_trained(folder: Path) -> None:
    """Raises ConfigError when any generation exists below ``folder``."""
    if has_checkpoint(folder):
        raise ConfigError(
            f"{folder.parent}: holds a trained model. Use --resume to continue, or --restart to begin again."
        )


def weights_sha256(folder: Path) -> str:
    """SHA-256 of the weights of one generation, as recorded and checked."""
    return str(read_state(folder)["sha256"]["model.safetensors"])


def _load_weights(network: nn.Module, path: Path) -> None:
    weights = load_tensors(path)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ConfigError(f"{path}: the weights do not fit the network of the plan: {first}") from error
    bad = [name for name, tensor in weights.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise ConfigError(
            f"{path}: {len(bad)} tensors hold NaN or Inf, the first is {bad[0]}. Use an older checkpoint."
        )


def _bytes(hexadecimal: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(hexadecimal), dtype=torch.uint8).clone()


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _split_optimizer(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimiser's state as flat tensors and a JSON-able rest."""
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{key}"] = value
            elif value is not None:
                scalars.setdefault(str(index), {})[key] = value
    return tensors, {"scalars": scalars, "param_groups": state["param_groups"]}


def _join_optimizer(tensors: Mapping[str, torch.Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in rest["scalars"].items()}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": rest["param_groups"]}


def _grouping(optimizer: Mapping[str, Any]) -> list[tuple[int, float | None]]:
    """Size and fraction of the learning rate of each group of parameters."""
    return [(len(group["params"]), group.get("scale")) for group in optimizer["param_groups"]]
