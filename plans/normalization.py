"""The choice of each channel's intensity normalisation: by what the channel is called, inside the mask or not.

The normalisations themselves are the rows of normalizers.py; medmamba/preprocessing/normalize.py carries them out.
"""

from __future__ import annotations

from medmamba.plans.fingerprint import ChannelIntensity, Fingerprint
from medmamba.plans.normalizers import DEFAULT, NORMALIZERS, normalizer_for
from medmamba.plans.schema import Decision, Normalization

MASK_BELOW = 0.75
"""When cropping to non-zero leaves less than this fraction of the voxels (median case), the mask is used.
Source: nnU-Net."""


def choose_normalization(fingerprint: Fingerprint) -> tuple[list[Normalization], list[Decision]]:
    """Normalisation of each channel, with one decision per channel."""
    relative_size = fingerprint.median_relative_size_after_cropping
    channels = zip(fingerprint.channel_names, fingerprint.intensities, strict=True)
    made = [channel_normalization(name, intensity, relative_size) for name, intensity in channels]
    return [chosen for chosen, _ in made], [decision for _, decision in made]


def channel_normalization(
    channel_name: str, intensity: ChannelIntensity, relative_size: float
) -> tuple[Normalization, Decision]:
    """Normalisation of one channel; ``relative_size`` is the median fraction of voxels left after cropping."""
    scheme = normalizer_for(channel_name)
    row = NORMALIZERS[scheme]
    use_mask = row.uses_mask and relative_size < MASK_BELOW
    reason, rule = row.reason, f"channel {row.channel_name!r}: {row.rule}"
    if scheme == DEFAULT:
        rule = f"every channel name that asks for no other: {row.rule}"
    if row.uses_mask:
        rule += f", inside the non-zero mask where cropping to it leaves under {MASK_BELOW:.0%} of the voxels"
    if use_mask:
        reason += (
            f" Cropping to non-zero leaves {relative_size:.0%} of the voxels: the background was removed, so the "
            f"statistics are taken inside the mask and the outside stays zero."
        )
    statistics = {name: getattr(intensity, name) for name in ("mean", "std", "percentile_00_5", "percentile_99_5")}
    return Normalization(scheme=scheme, use_mask=use_mask, **statistics), Decision(
        name=f"normalization[{channel_name}]",
        value={"scheme": scheme, "use_mask": use_mask},
        inputs={
            "channel": channel_name,
            "median_relative_size_after_cropping": relative_size,
            "foreground_mean": intensity.mean,
            "foreground_std": intensity.std,
        },
        rule=rule,
        reason=reason,
        source="nnU-Net 2.8.1, normalisation by channel name",
    )
