"""Published weights: checkpoints of the original projects read, loaded under our parameter names, and stored.

Loaded, adapted, unused and missing tensors are counted and named; a file without any match is an error.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from medmamba.disk.atomic import write_atomically
from medmamba.disk.own_files import refuse_existing
from medmamba.errors import ConfigError, InputError, unknown_name
from medmamba.networks.published.presets import PRESETS, mhs_vm
from medmamba.networks.weight_file import read_weight_file

Rule = tuple[str, str]

_SS2D: tuple[Rule, ...] = (
    (r"(^|\.)conv2d\.", r"\1conv."),  # it has three axes in a volume
    (r"(^|\.)(x_proj_weight|dt_projs_weight|dt_projs_bias|A_logs|Ds)$", r"\1scan.\2"),
)
_U_SHAPE: tuple[Rule, ...] = ((r"^vmunet\.", ""),)  # the wrapper of VM-UNet and MHS-VM

# (pattern, replacement) per family, applied in order to every original name.
RULES: dict[str, tuple[Rule, ...]] = {
    "vm_unet": (*_U_SHAPE, *_SS2D),
    "mhs_vm": (
        *_U_SHAPE,
        (r"mhs\.x_ssproj_W$", "mhs.x_ssproj.weight"),  # the same matrix under two names
        (r"\.scanning\.seq2seq_engine\.", ".mambaeng."),  # the same engine under two names
        (r"mhs\.scanhead_(\w)\.mambaeng\.", r"mhs.heads.\1."),
        *_SS2D,
    ),
    "vim": (
        (r"(^|\.)conv1d\.", r"\1forwards.conv1d."),
        (r"(^|\.)conv1d_b\.", r"\1backwards.conv1d."),
        (r"(^|\.)(x_proj|dt_proj)\.", r"\1forwards.scan.\2."),
        (r"(^|\.)(x_proj|dt_proj)_b\.", r"\1backwards.scan.\2."),
        (r"(^|\.)(A_log|D)$", r"\1forwards.scan.\2"),
        (r"(^|\.)A_b_log$", r"\1backwards.scan.A_log"),
        (r"(^|\.)D_b$", r"\1backwards.scan.D"),
    ),
    "mambaout": (),
    "mambaout_timm": (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
        (r"^head\.norm\.", "norm."),  # what the original calls head.norm is head.pre_logits.norm here
        (r"^head\.pre_logits\.fc\.", "head.fc1."),
        (r"^head\.pre_logits\.norm\.", "head.norm."),
        (r"^head\.fc\.", "head.fc2."),
    ),
    "hrvmamba": _SS2D,
}

_WRAPPERS = ("state_dict", "model", "model_ema", "net")  # entries under which checkpoints keep their weights
_PREFIXES = ("module.", "_orig_mod.", "backbone.")  # of distributed, compiled and wrapped models
_SHOWN = 6  # names per line of a report


@dataclass(frozen=True)
class WeightReport:
    """What became of a published state dict: names of our parameters, of the original's in ``left_over``."""

    loaded: tuple[str, ...]
    adapted: tuple[str, ...]  # reshaped, or used a second time, with how
    left_over: tuple[str, ...]  # with why
    missing: tuple[str, ...]  # keep their initial values

    def summary(self) -> str:
        """One line per group: how many, and the first few names."""
        lines = []
        for label in ("loaded", "adapted", "left_over", "missing"):
            names = getattr(self, label)
            shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            lines.append(f"{label.replace('_', ' ')}: {len(names)}" + (f" ({shown})" if names else ""))
        return "\n".join(lines)


def convert_weights(
    source: Path | str, target: Path | str, *, family: str, threshold: float | None = None, overwrite: bool = False
) -> WeightReport:
    """Translate a published checkpoint, a .safetensors, .pth, .pt or .bin, to our names, and write it as safetensors.

    ``threshold`` is MHS-VM's fusion threshold, which its checkpoints do not store; it is written into the metadata.
    Raises InputError for an unreadable file and when ``target`` exists, unless ``overwrite``; ConfigError for an
    unknown family and if nothing fits.
    """
    refuse_existing(Path(target), overwrite=overwrite)
    state = read_state_dict(source)
    module = from_state_dict(state, family, threshold=threshold)
    report = load_published(module, state, family)
    facts: dict[str, Any] = {"family": family, "source": Path(source).name, "missing": list(report.missing)}
    if threshold is not None:
        facts["threshold"] = threshold
    tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    with write_atomically(target) as file:
        file.write(save(tensors, metadata={"medmamba": json.dumps(facts)}))
    return report


def read_converted(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts (family, source, missing) of a file that :func:`convert_weights` wrote.

    Raises ConfigError for any other file.
    """
    try:
        stored = Path(path).read_bytes()
        head = json.loads(stored[8 : 8 + int.from_bytes(stored[:8], "little")])
        return load(stored), json.loads(head["__metadata__"]["medmamba"])
    except (SafetensorError, TypeError, KeyError, ValueError):
        raise ConfigError(
            f"{path}: not published weights under our names. Translate them first: "
            f"`medmamba convert weights {path} -o OUTPUT.safetensors --family FAMILY`."
        ) from None


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """Tensors by name from a checkpoint; nothing but tensors and plain containers is ever unpickled."""
    found = read_weight_file(path)
    for wrapper in _WRAPPERS:
        if isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    tensors = {str(name): tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise InputError(f"{path}: holds no tensors by name; a state dict is needed.")
    for prefix in _PREFIXES:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def our_name(original: str, family: str) -> str:
    """The name here of a parameter called ``original`` in the project that published it.

    >>> our_name("vmunet.layers.0.blocks.1.self_attention.A_logs", "vm_unet")
    'layers.0.blocks.1.self_attention.scan.A_logs'
    """
    for pattern, replacement in RULES[family]:
        original = re.sub(pattern, replacement, original)
    return original


def from_state_dict(state: Mapping[str, Tensor], family: str, *, threshold: float | None = None) -> nn.Module:
    """The published network of ``family`` (a key of PRESETS) in the sizes of these weights, with initial ones.

    ``threshold`` is MHS-VM's, the published one if None. Raises ConfigError for an unknown family and for weights of
    another network.
    """
    rules = _rules(state, family)
    shapes = {
        our_name(name, rules) if family == "mambaout" else name: tuple(tensor.shape) for name, tensor in state.items()
    }
    try:
        if family == "mhs_vm" and threshold is not None:
            return mhs_vm(shapes, threshold=threshold)
        return PRESETS[family](shapes)
    except (KeyError, IndexError, StopIteration, ValueError) as error:
        raise ConfigError(
            f"This checkpoint does not look like a {family} network: {error!r} was not found among names like "
            f"{', '.join(list(shapes)[:3])}."
        ) from None


def _rules(names: Iterable[str], family: str) -> str:
    """The key of RULES for parameters of these names. Raises ConfigError for an unknown family."""
    if family not in PRESETS:
        raise unknown_name("weights family", family, list(PRESETS))
    if family == "mambaout" and any(name.startswith("stem.") for name in names):
        return "mambaout_timm"  # the second of its two published layouts
    return "vm_unet" if family == "vmamba_v0" else family


def load_published(module: nn.Module, state: Mapping[str, Tensor], family: str) -> WeightReport:
    """Load a published state dict into our module; names not met stay as they are and are reported.

    ``vmamba_v0`` fills VM-UNet's encoder and, with the same blocks mirrored, its decoder, as the original does.
    Raises ConfigError if not a single tensor fits.
    """
    rules = _rules(state, family)
    own = module.state_dict()
    new: dict[str, Tensor] = {}
    adapted: dict[str, str] = {}
    left_over = []
    for name, tensor in state.items():
        key = our_name(name, rules)
        if key not in own:
            left_over.append(f"{name} (not in this network)")
        elif own[key].shape == tensor.shape:
            new[key] = tensor
        elif own[key].numel() == tensor.numel() and own[key].squeeze().shape == tensor.squeeze().shape:
            new[key] = tensor.reshape(own[key].shape)
            adapted[key] = f"{key} from {tuple(tensor.shape)}"
        else:
            left_over.append(f"{name} (is {tuple(tensor.shape)}, {tuple(own[key].shape)} is needed)")
    if family == "vmamba_v0":
        deepest = max((int(n.split(".")[1]) for n in own if n.startswith("layers.")), default=0)
        for key in list(new):
            found = re.match(r"layers\.(\d+)\.(blocks\..*)$", key)
            mirrored = f"layers_up.{deepest - int(found[1])}.{found[2]}" if found else ""
            if mirrored in own and own[mirrored].shape == new[key].shape:
                new[mirrored] = new[key]
                adapted[mirrored] = f"{mirrored} from {key}"
    if not new:
        raise ConfigError(
            f"No tensor of this checkpoint fits a {family} network. It has names like {', '.join(list(state)[:3])}; "
            f"needed are names like {', '.join(list(own)[:3])}."
        )
    module.load_state_dict(new, strict=False)
    missing = [name for name in own if name not in new and not name.endswith("num_batches_tracked")]
    loaded = [name for name in new if name not in adapted]
    return WeightReport(tuple(loaded), tuple(adapted.values()), tuple(left_over), tuple(missing))
