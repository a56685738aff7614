"""Add TorchScript, torch.export or ONNX files to a bundle, each proved against the network in a process of its own."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmamba.bundle.processes import BundleError, run_python
from medmamba.bundle.runtime.graphs import FILES
from medmamba.disk.atomic import write_atomically
from medmamba.disk.own_files import OwnFiles
from medmamba.disk.scratch import scratch_folder
from medmamba.errors import ConfigError, InputError, need_packages, unknown_name
from medmamba.models.bundle_parts import record_part
from medmamba.plans.json_record import read_stored

ONNX = "ONNX needs", ("onnx", "onnxscript", "onnxruntime"), "export"
"""What its format takes, for :func:`medmamba.errors.need_packages`."""
LARGEST_DIFFERENCE = 1e-3
"""Of logits; float32 sums in another order differ by about 1e-5."""

_EXPORT = "import sys; sys.modules['medmamba'] = None\nfrom scripts.graphs import main; main(*sys.argv[1:])"
# Only torch (and numpy, onnxruntime) can be imported: neither the bundle's scripts nor medmamba nor monai.
_RUN = """
import json, sys
for name in ("medmamba", "monai", "scripts"):
    sys.modules[name] = None
import torch
kind, path, trials = sys.argv[1:]
trials = torch.load(trials, weights_only=True)
if kind == "torchscript":
    run = torch.jit.load(path)
elif kind == "torch-export":
    run = torch.export.load(path).module()
else:
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    run = lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
with torch.no_grad():
    found = [(image.shape, (run(image) - logits).abs().max().item()) for image, logits in trials]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Parity:
    """Largest difference of the logits of one input."""

    kind: str
    shape: tuple[int, ...]
    difference: float


def export_graph(bundle: str | Path, kind: str) -> list[Parity]:
    """Write models/model.ts, model.pt2 or model.onnx into a bundle; compared at several batch and patch sizes.

    Raises BundleError, and writes nothing, when a difference exceeds LARGEST_DIFFERENCE.
    """
    folder = Path(bundle)
    if kind not in FILES:
        raise unknown_name("format", kind, list(FILES))
    if not (folder / "scripts" / "graphs.py").is_file():
        raise InputError(f"{folder}: not a bundle of `medmamba export`. Export the model first.")
    described = folder / "configs" / "inference.json"
    if "other_1" in read_stored(described, dict[str, Any], "configuration of a bundle", "Export the model again."):
        raise ConfigError(f"{folder}: averages several configurations; a graph holds one. Export one of them alone.")
    if kind == "onnx":
        need_packages(*ONNX)
    own, target = OwnFiles(folder), folder / "models" / FILES[kind]
    own.refuse_foreign([target], "Remove or rename it.")
    with scratch_folder() as scratch:
        graph, trials = Path(scratch, FILES[kind]), Path(scratch, "trials.pt")
        failure = f"{kind}: the network could not be exported or run"
        run_python(_EXPORT, folder, kind, str(graph), str(trials), failure=failure)
        ran = run_python(_RUN, Path(scratch), kind, str(graph), str(trials), failure=failure)
        found = json.loads(ran.stdout.splitlines()[-1])
        table = [Parity(kind, tuple(shape), difference) for shape, difference in found]
        worst = max(row.difference for row in table)
        if not worst <= LARGEST_DIFFERENCE:
            raise BundleError(f"{target}: logits differ by {worst:.2g}, more than {LARGEST_DIFFERENCE}; not kept.")
        with open(graph, "rb") as made, write_atomically(target) as file:
            shutil.copyfileobj(made, file)
    own.adopt([target])
    with own.recording():
        record_part(folder, target)
    return table
