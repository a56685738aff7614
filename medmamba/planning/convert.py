"""Plan files on disk from nnU-Net's format to ours and back; the translation itself is medmamba.plans.nnunet_files."""

from pathlib import Path

from medmamba.disk.atomic import write_text
from medmamba.disk.own_files import refuse_existing
from medmamba.errors import InputError
from medmamba.images.gate import read_small, shown
from medmamba.plans.nnunet_files import from_nnunet, is_nnunet, to_nnunet
from medmamba.plans.schema import Plan

LARGEST_BYTES = 50 * 2**20


def convert_plan(source: Path, output: Path, dataset: Path | None = None, *, overwrite: bool = False) -> str:
    """Write ``source`` in the other of the two formats; returns a sentence that says what was done.

    Args:
        source: nnU-Net's plans file, or a plan.json or run folder of ours.
        output: the file to write; it must not exist, unless ``overwrite``.
        dataset: nnU-Net's dataset.json, which names channels and labels; default: the one beside ``source``.

    Raises ConfigError for what the other side cannot express.
    """
    source = source / "plan.json" if source.is_dir() else source
    refuse_existing(output, overwrite=overwrite)
    text = read_small(source, LARGEST_BYTES)
    if not is_nnunet(text, source=shown(source)):
        write_text(output, to_nnunet(Plan.from_json(text, source=shown(source))))
        return f"nnU-Net plans file: {output}    Its folder in nnUNet_preprocessed must be named as its dataset_name."
    description = dataset or source.with_name("dataset.json")
    if not description.is_file():
        raise InputError(
            f"{shown(description)}: not found. nnU-Net's plans do not name channels and labels; give its dataset.json "
            f"with --dataset."
        )
    plan = from_nnunet(text, read_small(description, LARGEST_BYTES), source=shown(source))
    write_text(output, plan.to_json())
    return f"Plan with {', '.join(plan.configurations)}: {output}"
