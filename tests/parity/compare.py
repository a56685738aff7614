"""Comparison of our networks with golden files of the originals, as a command.

    python -m tests.parity.compare FILE.safetensors ...

Each file's model is rebuilt from its description, given the stored parameters (or those of the formula), run in float64
and float32, and compared: outputs, intermediates and gradients. One line per file shows the largest error of each kind
as a fraction of what is allowed; the exit code is 1 if any file is above its tolerance, 2 if a file cannot be judged.

Errors are ||a - b|| / ||b||. What is allowed comes from the files: stored as float32, their numbers have no more than
about 7 digits, so a float64 run may differ by 2e-6; a float32 run by 20 times what the original itself differs from its
own float64 run, and never less than 1e-5 (outputs) and 1e-4 (gradients). Where the original loses more than 1e-4 in
float32, only float64 is judged.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medmamba.errors import ConfigError, InputError, MedmambaError

from .golden import Golden, formula_input, formula_tensor, read_golden
from .models import rebuild
from .operators import operator_checks
from .subject import Subject

FLOAT64_TOLERANCE = 2e-6  # limited by the float32 storage of the files
FLOAT32_OUTPUT, FLOAT32_GRADIENT, SAFETY = 1e-5, 1e-4, 20.0
UNSTABLE = 1e-4  # an original that loses more in float32 is judged in float64 only


@dataclass(frozen=True)
class Check:
    """One comparison: the error found and the error allowed."""

    kind: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # False for nan


def compare(path: str | Path) -> list[Check]:
    """All comparisons of one golden file.

    Raises ConfigError for a model or an option that is not known here, InputError for a file that lacks something.
    """
    golden = read_golden(path)
    try:
        return _compare(golden)
    except KeyError as lacking:
        raise InputError(f"{golden.path.name}: the golden file has no {lacking}.") from None


def _compare(golden: Golden) -> list[Check]:
    checks = operator_checks(golden)
    if checks is not None:
        return [Check(*check) for check in checks]
    if golden.info.get("salt") is not None:
        return _compare_published(golden)
    precisions = [torch.float64]
    if golden.info.get("official_float32_rel_err_output", 0.0) <= UNSTABLE:
        precisions.append(torch.float32)
    return [check for dtype in precisions for check in _compare_module(golden, dtype)]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||, in float64; inf if the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    found, expected = found.detach().double(), expected.double()
    norm = expected.norm().item()
    return (found - expected).norm().item() / (norm if norm else 1.0)


def _allowed(golden: Golden, dtype: torch.dtype, gradient: bool, network: bool) -> float:
    """The tolerance of a file's outputs or gradients in one precision."""
    if golden.second_layout:
        if dtype == torch.float64:
            return 1e-6 if gradient else 2e-5
        return 1e-3 if gradient else (1e-4 if network else 1e-5)
    if dtype == torch.float64:
        return FLOAT64_TOLERANCE
    official = [
        value
        for key, value in golden.info.items()
        if key.startswith("official_float32_") and ("grad" in key) == gradient and "maxrel" not in key
    ]
    return max(FLOAT32_GRADIENT if gradient else FLOAT32_OUTPUT, SAFETY * max(official, default=0.0))


def _compare_module(golden: Golden, dtype: torch.dtype) -> list[Check]:
    subject = rebuild(golden)
    subject.module.to(dtype).eval()
    _load(subject, {name: t.to(dtype) for name, t in golden.parameters.items()}, golden)
    watched = {
        key.removeprefix("intermediate/"): t for key, t in golden.tensors.items() if key.startswith("intermediate/")
    }
    seen = _watch(subject, watched)

    inputs = [golden.tensors[name].to(dtype, copy=True).requires_grad_() for name in subject.inputs]
    outputs = subject.outputs(subject.run(*inputs))
    label = str(dtype).removeprefix("torch.")
    forward = _allowed(golden, dtype, gradient=False, network=subject.network)
    backward = _allowed(golden, dtype, gradient=True, network=subject.network)
    checks = []
    for name, output in outputs.items():
        expected = golden.tensors[name]
        checks.append(Check(f"{label} output", relative_error(output, expected), forward))
        if golden.second_layout:
            worst = (output.detach().double() - expected.double()).abs().max().item()
            checks.append(Check(f"{label} output max", worst, 1e-3 if subject.network else 2e-5))
    checks += [Check(f"{label} intermediate", relative_error(seen[k], t), forward) for k, t in watched.items()]

    if "cotangent" in golden.tensors:
        (outputs["output"] * golden.tensors["cotangent"].to(dtype)).sum().backward()
        for name, tensor in zip(subject.inputs, inputs, strict=True):
            if f"grad/{name}" in golden.tensors and tensor.grad is not None:
                error = relative_error(tensor.grad, golden.tensors[f"grad/{name}"])
                checks.append(Check(f"{label} input gradient", error, backward))
        for name, expected in golden.parameter_gradients.items():
            error = relative_error(_gradient(subject, name, golden), expected)
            checks.append(Check(f"{label} gradient", error, backward))
        for name, norm in golden.grad_l2.items():
            found = _gradient(subject, name, golden).double().norm().item()
            checks.append(Check(f"{label} gradient norm", abs(found - norm) / (norm or 1.0), backward))
    return checks


def _compare_published(golden: Golden) -> list[Check]:
    """A model of published size: parameters by formula, float64, output and stage statistics."""
    subject = rebuild(golden)
    module = subject.module.eval()
    salt = int(golden.info["salt"])
    state = {}
    for name, parameter in module.named_parameters():
        original = subject.original(name)
        state[name] = formula_tensor(original, tuple(parameter.shape), salt)
    module.load_state_dict(state)
    count = sum(p.numel() for p in module.parameters())
    checks = [Check("parameter count", abs(count - golden.info["num_params"]), 0.0)]
    module.double()
    sampled: dict[str, list[float]] = golden.stats
    seen = _watch(subject, sampled)
    with torch.no_grad():
        image = formula_input(tuple(golden.info["input_shape"]), salt).double()
        output = subject.outputs(subject.run(image))["output"]
    checks.append(Check("float64 output", relative_error(output, golden.tensors["output"]), FLOAT64_TOLERANCE))
    for name, expected in sampled.items():
        flat = seen[name].flatten()
        spread = [flat.mean(), flat.std(), flat.abs().max(), *flat[:: max(1, flat.numel() // 16)][:16]]
        error = relative_error(torch.stack(spread), torch.tensor(expected, dtype=torch.float64))
        checks.append(Check("float64 stage statistics", error, 1e-5))
    return checks


def _load(subject: Subject, parameters: dict[str, Tensor], golden: Golden) -> None:
    """Load by translated name; every parameter must be met, and every stored tensor used."""
    own = subject.module.state_dict()
    state: dict[str, Tensor] = {}
    for name, tensor in parameters.items():
        key = subject.our_name(name)
        if not key:
            continue
        if key in own and own[key].numel() == tensor.numel():
            tensor = tensor.reshape(own[key].shape)  # 1x1 convolutions stored as matrices, and the other way round
        state[key] = tensor
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unused = [k for k in state if k not in own]
    wrong = [k for k in state if k in own and state[k].shape != own[k].shape]
    if missing or unused or wrong:
        raise ConfigError(
            f"{golden.path.name}: parameters missing {missing}, unused {unused}, of another shape {wrong}."
        )
    subject.module.load_state_dict(state, strict=False)


def _gradient(subject: Subject, original: str, golden: Golden) -> Tensor:
    parameter = dict(subject.module.named_parameters()).get(subject.our_name(original))
    if parameter is None or parameter.grad is None:
        raise ConfigError(f"{golden.path.name}: no gradient for the original's parameter {original!r}.")
    return parameter.grad


def _watch(subject: Subject, names: Iterable[str]) -> dict[str, Tensor]:
    """Record the outputs of the submodules that the file has intermediates of."""
    seen: dict[str, Tensor] = {}
    for name in names:

        def keep(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
            seen[name] = subject.intermediate(name, output).detach()

        try:
            subject.module.get_submodule(subject.module_name(name)).register_forward_hook(keep)
        except AttributeError:
            raise ConfigError(f"The rebuilt model has no part {name!r}, of which the file holds the output.") from None
    return seen


def summary(checks: Sequence[Check]) -> str:
    """The largest error of each kind with what is allowed: ``float64 output 2.5e-08 (2e-06)``."""
    worst: dict[str, Check] = {}
    for check in checks:
        known = worst.get(check.kind)
        if known is None or not (check.error / (check.allowed or 1) <= known.error / (known.allowed or 1)):
            worst[check.kind] = check
    return ", ".join(f"{c.kind} {c.error:.1e} ({c.allowed:.0e})" for c in worst.values())


def main(paths: Sequence[str]) -> int:
    """Compare files, one printed line each; 0 if all agree, 1 if one is above tolerance, 2 if one cannot be judged."""
    if not paths:
        print("usage: python -m tests.parity.compare FILE.safetensors ...", file=sys.stderr)
        return 2
    code = 0
    for path in paths:
        try:
            checks = compare(path)
        except MedmambaError as error:
            print(f"ERROR {Path(path).name}: {error}")
            code = 2
            continue
        good = all(check.passed for check in checks) and bool(checks)
        print(f"{'ok   ' if good else 'ABOVE'} {Path(path).name}: {summary(checks)}", flush=True)
        code = max(code, 0 if good else 1)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
