"""Renew tests/data/kernels from the full golden files: ``python tests/kernels/make_golden_subset.py FOLDER``.

The cases are copied unchanged; only the largest are left out, to keep the repository small.
"""

import json
import shutil
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

LARGEST_CASE_BYTES = 100_000
ALWAYS = ("strong_decay",)
WHOLE_FILES = ("dcnv4_core", "dcnv4_module", "mamba2_simple", "mamba2_simple_groups", "ssd_minimal")
TARGET = Path(__file__).resolve().parents[1] / "data" / "kernels"


def main(source: Path) -> None:
    with safe_open(str(source / "selective_scan.safetensors"), "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    sizes: dict[str, int] = {}
    for key, tensor in tensors.items():
        case = key.split("/")[0]
        sizes[case] = sizes.get(case, 0) + tensor.nbytes
    kept = {case for case, size in sizes.items() if size <= LARGEST_CASE_BYTES or case in ALWAYS}
    TARGET.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: tensor for key, tensor in tensors.items() if key.split("/")[0] in kept},
        str(TARGET / "selective_scan.safetensors"),
        metadata={"config": json.dumps({case: config[case] for case in config if case in kept})},
    )
    for name in WHOLE_FILES:
        shutil.copyfile(source / f"{name}.safetensors", TARGET / f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
