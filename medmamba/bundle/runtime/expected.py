"""Shipped in bundles: the expected quality of each mask, from the rules that `medmamba find-best` learned.

The inferer measures what the networks say and puts it into the metadata of its logits (``MEASURED``); with the mask it
becomes the expectations in the mask's metadata (``EXPECTED``), and the file X_expected.json beside it.
"""

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray
from torch import Tensor, nn

from medmamba.bundle.runtime.cases import EXPECTED_ENDING, stem_of
from medmamba.bundle.runtime.expectations import read_rules
from medmamba.bundle.runtime.network import hash_of_weights
from medmamba.bundle.runtime.plan import read_numbers
from medmamba.bundle.runtime.weights import CURE, show_in_one_line
from medmamba.disk.atomic import write_json
from medmamba.errors import InputError
from medmamba.inference.confidence import Confidence
from medmamba.inference.evidence import NetworkEvidence, measured_image
from medmamba.inference.expected import expectations_of_mask
from medmamba.models.output_channels import OutputChannels

MEASURED, EXPECTED = "medmamba_measured", "medmamba_expected"


class ExpectedMasks:
    """The rules of a bundle: ``path`` of their file, its SHA-256, and that of the weights that they hold for.

    Raises InputError for a file that is missing, or not the one that was exported.
    """

    def __init__(self, path: str, plan: Mapping[str, Any], sha256: str, weights_sha256: str) -> None:
        content = Path(path).read_bytes() if Path(path).is_file() else b""
        if hashlib.sha256(content).hexdigest() != sha256:
            show_in_one_line()
            raise InputError(f"{path}: not the rules of expected quality that were exported (SHA-256). {CURE}")
        self.rules = read_rules(json.loads(content))
        self.plan = read_numbers(plan)
        self.heads = OutputChannels.of_plan(self.plan)
        self.weights_sha256 = weights_sha256

    def confidence(self) -> Confidence:
        """What sees the patches of one image."""
        return Confidence(sigmoid=self.heads.sigmoid, evidence=NetworkEvidence(self.heads))

    def measured(self, seen: Confidence, network: Any) -> str:
        """What was seen, as text for the metadata of the logits; with other weights than the export's, the refusal."""
        if not isinstance(network, nn.Module) or hash_of_weights(network) != self.weights_sha256:
            return json.dumps("not learned for these weights: they are not those of the export")
        assert seen.evidence is not None
        return json.dumps(seen.evidence.of_structures())

    def of_mask(
        self, measured: str | None, indices: NDArray[np.integer], mm: Sequence[float] | None, image: Tensor, grid: Any
    ) -> str:
        """What to expect of label indices (i, j, k), of voxels of these ``mm``; ``image`` (C, I, J, K) on ``grid``."""
        found = "not measured: the inferer got no metadata" if measured is None else json.loads(measured)
        if isinstance(found, str):
            return json.dumps({"expected": {}, "not_learned": {"": found}})
        networks = {int(channel): values for channel, values in found.items()}
        looks = measured_image(image.cpu().numpy()[: len(self.plan.channel_names)], grid.spacing_mm)
        expected, lacking, _ = expectations_of_mask(self.rules, self.heads, indices, mm, networks, looks)
        return json.dumps({"expected": {name: one.as_dict() for name, one in expected.items()}, "not_learned": lacking})


class SaveExpectedd(MapTransform):
    """Writes X_expected.json beside the mask of image X, as SaveImaged names it."""

    def __init__(self, keys: Any, output_dir: str) -> None:
        super().__init__(keys)
        self.folder = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(dict(data)):
            mask: MetaTensor = data[key]
            name = stem_of(Path(str(mask.meta["filename_or_obj"])).name)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(
                self.folder / f"{name}{EXPECTED_ENDING}", {"schema_version": 1, **json.loads(mask.meta[EXPECTED])}
            )
        return dict(data)
