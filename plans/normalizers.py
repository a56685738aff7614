"""The intensity normalisations by name: which channels ask for each, what nnU-Net calls it, its rule and reason.

What is done to the voxels is one function per name in medmamba/preprocessing/normalize.py; there CT is clipped. A
further normalisation is a row here and a function there, see docs/how-to/add-a-normalisation.md.
"""

from dataclasses import dataclass

PERCENTILES = (0.5, 99.5)
"""Percentiles of the foreground of all training images to which CT is clipped. Source: nnU-Net."""

DEFAULT = "zscore"
"""For channels whose name no row knows. Source: nnU-Net."""


@dataclass(frozen=True)
class Normalizer:
    """One way to normalise a channel."""

    channel_name: str
    """Name of the channels, in lower case, that are normalised so."""
    nnunet: str | None
    """Its class in nnU-Net, or None where nnU-Net has no such normalisation."""
    rule: str
    reason: str
    uses_mask: bool = False
    """Whether it can take its statistics inside the non-zero mask only and leave the outside zero."""


NORMALIZERS: dict[str, Normalizer] = {
    "zscore": Normalizer(
        "zscore",
        "ZScoreNormalization",
        rule="subtract the mean of each image, divide by its standard deviation",
        reason="Intensities of this kind have no common scale between scanners or cases, so each image sets its own.",
        uses_mask=True,
    ),
    "ct": Normalizer(
        "ct",
        "CTNormalization",
        rule=f"clip to the {PERCENTILES[0]:g} and {PERCENTILES[1]:g} percentiles of the training foreground, subtract "
        f"its mean, divide by its standard deviation",
        reason="CT numbers have the same meaning on every scanner, so all images share one window and one scale.",
    ),
    "rescale_to_0_1": Normalizer(
        "rescale_to_0_1",
        "RescaleTo01Normalization",
        rule="map the minimum of each image to 0 and its maximum to 1",
        reason="The channel name asks for the range of each image to become 0 to 1.",
    ),
    "rgb_to_0_1": Normalizer(
        "rgb_to_0_1",
        "RGBTo01Normalization",
        rule="divide by 255",
        reason="Colour values are stored as 0 to 255.",
    ),
    "none": Normalizer(
        "nonorm",
        "NoNormalization",
        rule="leave the values as they are",
        reason="The channel name asks for the values as stored.",
    ),
}


def normalizer_for(channel_name: str) -> str:
    """Name of the normalisation of a channel, by what the channel is called."""
    wanted = channel_name.casefold()
    return next((name for name, row in NORMALIZERS.items() if row.channel_name == wanted), DEFAULT)
