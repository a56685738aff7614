"""Import of the answered packages: a finder that makes each module from the names that medmamba has for it."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from medmamba.compat.usage import forget
from medmamba.errors import ConfigError

ORIGIN = "<medmamba.compat>"
PAGE = "docs/reference/compat.md"


def _same(module: str, *names: str) -> dict[str, str]:
    return {name: f"{module}:{name}" for name in names}


def _extension(name: str) -> dict[str, str]:
    return {way: f"medmamba.compat.extensions:{name}_{way}" for way in ("fwd", "bwd")}


_MAMBA, _MAMBA2, _MAMBA3 = "medmamba.compat.mamba", "medmamba.compat.mamba2", "medmamba.compat.mamba3"
_SCAN, _SSD, _UPDATE = "medmamba.compat.selective_scan", "medmamba.compat.chunk_scan", "medmamba.compat.state_update"
_CONV, _GENERATION = "medmamba.compat.causal_convolution", "medmamba.compat.generation"
_NORMS, _GATED = "medmamba.compat.norms", "medmamba.compat.gated_norms"
_LAYER_NORMS = {
    "RMSNorm": f"{_NORMS}:AddRMSNorm",
    **_same(_NORMS, "layer_norm_fn", "layer_norm_linear_fn", "layer_norm_ref", "rms_norm_fn", "rms_norm_ref"),
}

ANSWERS: dict[str, dict[str, str]] = {
    "mamba_ssm": {
        **_same(_MAMBA, "Mamba"),
        **_same(_MAMBA2, "Mamba2"),
        **_same(_MAMBA3, "Mamba3"),
        **_same(_SCAN, "selective_scan_fn", "mamba_inner_fn", "bimamba_inner_fn"),
    },
    "mamba_ssm.modules": {},
    "mamba_ssm.modules.mamba_simple": _same(_MAMBA, "Mamba"),
    "mamba_ssm.modules.mamba2": _same(_MAMBA2, "Mamba2"),
    "mamba_ssm.modules.mamba2_simple": _same(_MAMBA2, "Mamba2Simple"),
    "mamba_ssm.modules.mamba3": _same(_MAMBA3, "Mamba3"),
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.selective_scan_interface": _same(
        _SCAN,
        "selective_scan_fn",
        "selective_scan_ref",
        "mamba_inner_fn",
        "mamba_inner_ref",
        "mamba_inner_fn_no_out_proj",
        "bimamba_inner_fn",
        "bimamba_inner_ref",
    ),
    "mamba_ssm.ops.triton": {},
    "mamba_ssm.ops.triton.layer_norm": _LAYER_NORMS,
    "mamba_ssm.ops.triton.layernorm": _LAYER_NORMS,
    "mamba_ssm.ops.triton.layernorm_gated": {
        "LayerNorm": f"{_GATED}:LayerNormGated",
        "RMSNorm": f"{_GATED}:RMSNormGated",
        **_same(_GATED, "layernorm_fn", "rmsnorm_fn", "rms_norm_ref"),
    },
    "mamba_ssm.ops.triton.selective_state_update": _same(
        _UPDATE, "selective_state_update", "selective_state_update_ref"
    ),
    "mamba_ssm.ops.triton.ssd_combined": _same(_SSD, "mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined"),
    "mamba_ssm.utils": {},
    "mamba_ssm.utils.generation": _same(_GENERATION, "GenerationMixin", "InferenceParams"),
    "mamba_ssm.utils.hf": _same(_GENERATION, "load_config_hf", "load_state_dict_hf"),
    "causal_conv1d": _same(_CONV, "causal_conv1d_fn", "causal_conv1d_update"),
    "causal_conv1d.causal_conv1d_interface": _same(
        _CONV, "causal_conv1d_fn", "causal_conv1d_ref", "causal_conv1d_update", "causal_conv1d_update_ref"
    ),
    "causal_conv1d.causal_conv1d_varlen": _same(_CONV, "causal_conv1d_varlen_states"),
    "selective_scan_cuda": _extension("mamba"),
    "selective_scan_cuda_core": _extension("core"),
    "selective_scan_cuda_oflex": _extension("oflex"),
    "csm_triton": _same(
        "medmamba.compat.cross_scan",
        "CrossMergeF",
        "CrossMergeTritonF",
        "CrossScanF",
        "CrossScanTritonF",
        "cross_merge_fn",
        "cross_scan_fn",
    ),
}
"""Module of an original -> its names -> the module and name of medmamba that answer."""

VERSIONS = {"mamba_ssm": "2.3.2.post1", "causal_conv1d": "1.6.1"}
"""What ``__version__`` of an answered package says: the version whose signatures it has."""

PACKAGES = tuple(name for name in ANSWERS if "." not in name)


class _Answering(Loader):
    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = ORIGIN  # which an ImportError of a name that is missing shows
        module.__doc__ = f"Answered by medmamba.compat; {PAGE} lists what is."
        if module.__name__ in VERSIONS:
            module.__dict__["__version__"] = VERSIONS[module.__name__]
        for name, place in self.names.items():
            source, _, attribute = place.partition(":")
            module.__dict__[name] = getattr(importlib.import_module(source), attribute)


class _AnswerFinder(MetaPathFinder):
    """Finds what ANSWERS lists; also ``csm_triton`` inside a package, as VMamba and its descendants keep it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        root, _, _ = fullname.partition(".")
        known = "csm_triton" if fullname.endswith(".csm_triton") else fullname
        if known in ANSWERS:
            has_parts = any(name.startswith(f"{known}.") for name in ANSWERS)
            spec = ModuleSpec(fullname, _Answering(ANSWERS[known]), origin=ORIGIN, is_package=has_parts)
            spec.has_location = False
            return spec
        if root in PACKAGES:
            raise ModuleNotFoundError(f"medmamba.compat has no {fullname}; {PAGE} lists what it has.", name=fullname)
        return None


def install(replace: bool = False) -> None:
    """Let imports of mamba_ssm, causal_conv1d and the CUDA extensions of scans find medmamba's operators.

    Says once on standard error what is answered. With `replace` that also holds where the original is installed;
    modules that have imported it before keep what they have.

    Raises ConfigError if an original can be imported, unless `replace` is given.
    """
    if installed():
        return
    for name in PACKAGES:
        where = _original(name)
        if where and not replace:
            raise ConfigError(
                f"{name} is installed ({where}): medmamba.compat leaves it alone. To use medmamba's operators in its "
                "place: install(replace=True), or --replace on the command line."
            )
    _drop_modules()
    forget()
    sys.meta_path.insert(0, _AnswerFinder())
    for name in PACKAGES:
        importlib.import_module(name)
    print(f"medmamba.compat answers for {', '.join(PACKAGES)}.", file=sys.stderr)


def uninstall() -> None:
    """Answer no further imports; modules that have imported something keep it."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _AnswerFinder)]
    _drop_modules()


def installed() -> bool:
    """Whether imports are answered."""
    return any(isinstance(finder, _AnswerFinder) for finder in sys.meta_path)


def _drop_modules() -> None:
    for name in list(sys.modules):
        answered = getattr(sys.modules[name], "__file__", None) == ORIGIN
        if answered or name.partition(".")[0] in PACKAGES:
            del sys.modules[name]


def _original(name: str) -> str | None:
    """Where the original of this name lies, or None; a folder without code in it is none."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):  # a module made by hand has no spec
        return "made by the program"
    return spec.origin if spec is not None else None
