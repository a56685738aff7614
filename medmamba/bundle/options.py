"""The options of `medmamba export`: the model card, what is exported, and what it is checked on."""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator

from medmamba.errors import InputError
from medmamba.inference.options import NO_MIRROR_TEXT
from medmamba.options import OVERWRITE_TEXT, Folds, Names, Options, option

Graph = Literal["torch-export", "onnx"]
CARD = "Model card"


def _one_or_several(value: object) -> object:
    return [value] if isinstance(value, str) else value


class BundleCard(Options):
    """Information that only the author of a bundle has; raises InputError without licence and intended use."""

    licence: str = option(
        "", "Licence of the bundle: an SPDX identifier or a text file.", panel=CARD, flag="--licence --license"
    )
    intended_use: str = option("", "Intended use of the model, in a sentence.", panel=CARD)
    name: str = option("medmamba_segmentation", "Name of the bundle: letters, digits, _ and -.", panel=CARD)
    release: str = option("0.1.0", "Version of the bundle.", panel=CARD)
    authors: str = option("unnamed", "Authors of the model.", panel=CARD)
    description: str = option("", "Description of the model.", panel=CARD)
    data_licence: str = option("", "Licence of the training data.", panel=CARD)
    references: Annotated[tuple[str, ...], BeforeValidator(_one_or_several)] = option(
        (), "Publication about the model; repeat for several.", panel=CARD, flag="--reference"
    )

    def model_post_init(self, context: object) -> None:
        """Check what a bundle cannot do without."""
        if not self.licence.strip():
            raise InputError("A bundle needs a licence: give --licence an SPDX name, as Apache-2.0, or a text file.")
        if not self.intended_use.strip():
            raise InputError('A bundle needs its intended use: give --intended-use "what, in which images, for whom".')
        if not all(part.isdecimal() for part in self.release.split(".")) or self.release.count(".") != 2:
            raise InputError(f"--release {self.release!r} is not a version. Write three numbers, as 0.1.0.")


class ExportOptions(Options):
    """The choices of :func:`medmamba.bundle.write.export_bundle`, and further forms of the network."""

    check_on: Path = option(..., "Images on which bundle and model must give equal masks.")
    configuration: Names | None = option(
        None,
        "Configuration; repeat for an ensemble. Default: the choice of `medmamba find-best`, else the plan's default.",
    )
    folds: Folds | None = option(None, "Fold to use; repeat for several. Default: all.", flag="--fold")
    mirror: bool = option(True, NO_MIRROR_TEXT, flag="--no-mirror")
    graphs: Annotated[tuple[Graph, ...], BeforeValidator(_one_or_several)] = option(
        (), f"Graph of the network to write too: {', '.join(get_args(Graph))}; repeat for several.", flag="--graph"
    )
    most_cases: int = option(2, "Largest number of cases to check.", ge=1)
    overwrite: bool = option(False, OVERWRITE_TEXT)
