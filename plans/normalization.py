"""Intensity normalisation per channel, by what the channel is called, and whether it looks inside the mask only."""

from __future__ import annotations

from medmamba.plans.fingerprint import ChannelIntensity, Fingerprint
from medmamba.plans.schema import Decision, Normalization, Scheme

MASK_BELOW = 0.75
"""When cropping to non-zero leaves less than this share of the voxels (median case), the mask is used.
Source: nnU-Net."""

SCHEMES: dict[str, Scheme] = {
    "ct": "ct",
    "nonorm": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale_to_0_1",
    "rgb_to_0_1": "rgb_to_0_1",
}
"""Scheme by channel name in lower case; every other name means z-score. Source: nnU-Net."""

SOURCE = "nnU-Net 2.8.1, normalisation by channel name"

_RULES = {
    "ct": "clip to the 0.5 and 99.5 percentiles of the training foreground, subtract its mean, divide by its std",
    "zscore": "subtract the mean of each image, divide by its standard deviation",
    "none": "leave the values as they are",
    "rescale_to_0_1": "map the minimum of each image to 0 and its maximum to 1",
    "rgb_to_0_1": "divide by 255",
}

_REASONS = {
    "ct": "CT numbers have the same meaning on every scanner, so all images share one window and one scale.",
    "zscore": "Intensities of this kind have no common scale between scanners or cases, so each image sets its own.",
    "none": "The channel name asks for the values as stored.",
    "rescale_to_0_1": "The channel name asks for the range of each image to become 0 to 1.",
    "rgb_to_0_1": "Colour values are stored as 0 to 255.",
}


def choose_normalization(fingerprint: Fingerprint) -> tuple[list[Normalization], list[Decision]]:
    """Normalisation of each channel, with one decision per channel."""
    chosen, decisions = [], []
    for name, intensity in zip(fingerprint.channel_names, fingerprint.intensities, strict=True):
        result = channel_normalization(name, intensity, fingerprint.median_relative_size_after_cropping)
        chosen.append(result)
        decisions.append(_decision(name, result, intensity, fingerprint.median_relative_size_after_cropping))
    return chosen, decisions


def channel_normalization(channel_name: str, intensity: ChannelIntensity, relative_size: float) -> Normalization:
    """Normalisation of one channel; ``relative_size`` is the median share of voxels left after cropping."""
    scheme = SCHEMES.get(channel_name.casefold(), "zscore")
    return Normalization(
        scheme=scheme,
        use_mask=scheme == "zscore" and relative_size < MASK_BELOW,
        mean=intensity.mean,
        std=intensity.std,
        percentile_00_5=intensity.percentile_00_5,
        percentile_99_5=intensity.percentile_99_5,
    )


def _decision(name: str, result: Normalization, intensity: ChannelIntensity, relative_size: float) -> Decision:
    reason = _REASONS[result.scheme]
    if result.use_mask:
        reason += (
            f" Cropping to non-zero leaves {relative_size:.0%} of the voxels: the background was removed, so the "
            f"statistics are taken inside the mask and the outside stays zero."
        )
    return Decision(
        name=f"normalization[{name}]",
        value={"scheme": result.scheme, "use_mask": result.use_mask},
        inputs={
            "channel": name,
            "median_relative_size_after_cropping": relative_size,
            "foreground_mean": intensity.mean,
            "foreground_std": intensity.std,
        },
        rule=_RULES[result.scheme] + ("; inside the non-zero mask" if result.use_mask else ""),
        reason=reason,
        source=SOURCE,
    )
