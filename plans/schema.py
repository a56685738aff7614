"""The plan: every number that preprocessing, training and prediction follow, each with the reason for it.

Axis order: ``axis_order`` maps canonical array axes (i, j, k) to the plan's axes; everything inside a configuration
(spacing, shapes, patch, strides, kernels) is in the plan's axes, and a 2D configuration leaves out the first of them.
"""

from math import prod
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from medmamba.geometry.grid import MOST_VOXELS
from medmamba.plans.json_record import Record
from medmamba.plans.normalizers import NORMALIZERS
from medmamba.plans.options import PlanOptions
from medmamba.plans.sizes import MOST_BLOCKS, check_size

MOST_BATCH_VOXELS = 2**28
"""Voxels of a batch of patches: 32 channels of it take 32 GiB in fp32."""
SPACINGS_MM = (1e-7, 1e5)
LONGEST_NAME = 100


def _file_name(name: str) -> str:
    whole = name.strip(". ") == name and 0 < len(name) <= LONGEST_NAME
    if not whole or not name.isprintable() or set(name) & set("/\\:"):
        raise ValueError("must be the name of a folder: printable, without / \\ or :, no dot or blank at its ends")
    return name


FileName = Annotated[str, AfterValidator(_file_name)]
"""A name that is part of a path in the run folder and cannot lead out of it."""


class Decision(Record):
    """One decision of the planner: what was chosen, from what, by which rule, and why."""

    name: str
    value: Any
    inputs: dict[str, Any]
    rule: str
    reason: str
    source: str


class ConvolutionParts(Record):
    """What stands around the convolutions of a trained nnU-Net model, where it is not what plain_unet and residual_unet
    have (medmamba/networks/planned/plain_unet.py)."""

    bias: bool = True
    norm: Literal["instance", "batch", "none"] = "instance"
    affine: bool = True
    eps: float = Field(default=1e-5, gt=0, le=1)
    slope: float = Field(default=0.01, ge=0, le=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class NetworkPlan(Record):
    """The numbers a network of family ``name`` is built from.

    Stage s works at the resolution of the patch divided by the product of strides[0..s]. With stem "conv" strides[0] is
    all ones and stage 0 has convolutions at full resolution; with stem "patch" strides[0] is the edge of the embedded
    patches and stage 0 has the family's own blocks. ``blocks_per_stage`` counts them in the encoder: convolutions of
    plain_unet, residual blocks of residual_unet.
    """

    name: str
    spatial_dims: Literal[2, 3]
    stem: Literal["conv", "patch"]
    strides: list[list[int]]
    features_per_stage: list[int]
    blocks_per_stage: list[int]
    state_size: int = Field(ge=1, le=256)
    routes: str
    kernel_sizes: list[list[int]]
    deep_supervision: bool
    use_scan: bool
    decoder_convs: list[int] | None = None
    """Convolutions of each decoder stage, from the bottleneck up; None: as many as the family has."""
    parts: ConvolutionParts | None = None
    """None: the parts that the family has."""

    @model_serializer(mode="wrap")
    def _without_usual_parts(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        return {name: value for name, value in written.items() if name != "parts" or value is not None}

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        stages = len(self.strides)
        for field in ("features_per_stage", "blocks_per_stage", "kernel_sizes"):
            if len(getattr(self, field)) != stages:
                raise ValueError(f"{field} has {len(getattr(self, field))} entries, strides has {stages}")
        convs = self.decoder_convs
        if convs is not None and (len(convs) != stages - 1 or not all(1 <= count <= MOST_BLOCKS for count in convs)):
            raise ValueError(f"decoder_convs must be {stages - 1} numbers from 1 to {MOST_BLOCKS}, got {convs}")
        for field in ("strides", "kernel_sizes"):
            if any(len(entry) != self.spatial_dims for entry in getattr(self, field)):
                raise ValueError(f"each entry of {field} must have {self.spatial_dims} numbers")
        check_size(self.strides, self.features_per_stage, self.blocks_per_stage, self.kernel_sizes)
        if self.stem == "conv" and any(step != 1 for step in self.strides[0]):
            raise ValueError("stem 'conv' keeps full resolution, so strides[0] must be all ones")
        return self

    @property
    def divisor(self) -> list[int]:
        """Number that the patch must be a multiple of, per axis: the product of all strides."""
        return [prod(axis) for axis in zip(*self.strides, strict=True)]


class Normalization(Record):
    """How one channel's intensities are normalised."""

    scheme: str
    """Name of one of medmamba.plans.normalizers."""
    use_mask: bool
    """Whether mean and standard deviation are taken inside the non-zero mask only, and outside stays zero."""
    mean: float | None = None
    std: float | None = None
    percentile_00_5: float | None = None
    percentile_99_5: float | None = None

    @model_validator(mode="after")
    def _can_be_carried_out(self) -> Self:
        if self.scheme not in NORMALIZERS:
            raise ValueError(f"scheme {self.scheme!r} is none of the normalisations {', '.join(NORMALIZERS)}")
        numbers = (self.mean, self.std, self.percentile_00_5, self.percentile_99_5)
        if self.scheme == "ct" and any(number is None for number in numbers):
            raise ValueError("scheme 'ct' needs mean, std, percentile_00_5 and percentile_99_5 of the training images")
        return self


class Mirroring(Record):
    """Which axes of a patch may be mirrored, in training and in prediction."""

    axes: list[int]
    """Axes counted in the patch."""
    swap_axis: int | None = None
    """Axis whose mirroring exchanges the labels of each left/right pair."""
    keeps_sides: bool = False
    """Whether labels are left or right, so that rotations stay small where a rotated mirror image would swap them."""


class Configuration(Record):
    """One way to train on the dataset: a grid, a patch, a batch and a network."""

    name: FileName
    spatial_dims: Literal[2, 3]
    spacing_mm: list[float] | None
    """Spacing of the grid in mm per plan axis; None for images without millimetres, which are not resampled."""
    median_shape: list[float]
    """Median shape in voxels of the cases on this grid; may end in .5 for an even number of cases."""
    patch_size: list[int]
    batch_size: int = Field(ge=1)
    batch_dice: bool
    """Whether the Dice loss pools the batch instead of averaging over its images."""
    network: NetworkPlan
    mirroring: Mirroring | None = None
    """None: decided by the names of the labels."""
    previous_stage: str | None
    """Configuration whose prediction is an additional input (cascade), or None."""
    decisions: list[Decision]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        dims = self.spatial_dims
        if self.network.spatial_dims != dims:
            raise ValueError(f"network.spatial_dims is {self.network.spatial_dims}, spatial_dims is {dims}")
        for field in ("patch_size", "median_shape", "spacing_mm"):
            value = getattr(self, field)
            if value is not None and (len(value) != dims or any(number <= 0 for number in value)):
                raise ValueError(f"{field} must have {dims} numbers above 0, got {value}")
        low, high = SPACINGS_MM
        if not all(low <= mm <= high for mm in self.spacing_mm or ()):
            raise ValueError(f"spacing_mm must be from {low:g} to {high:g}, got {self.spacing_mm}")
        if self.batch_size * prod(self.patch_size) > MOST_BATCH_VOXELS:
            raise ValueError(
                f"patch_size {self.patch_size} with batch_size {self.batch_size} has over {MOST_BATCH_VOXELS} voxels"
            )
        if self.mirroring is not None and not set(self.mirroring.axes) <= set(range(dims)):
            raise ValueError(f"mirroring.axes must be axes of the patch, 0 to {dims - 1}, got {self.mirroring.axes}")
        wrong = [n for n, d in zip(self.patch_size, self.network.divisor, strict=True) if n % d]
        if wrong:
            raise ValueError(f"patch_size {self.patch_size} is not a multiple of {self.network.divisor} (all strides)")
        return self


class Reading(Record):
    """How the files of the dataset were read; prediction and evaluation with the plan read files in the same way."""

    nonfinite: Literal["error", "zero"] = "error"
    prefer: Literal["sform", "qform"] | None = None
    max_voxels: int = Field(default=MOST_VOXELS, ge=1)
    match_labels: bool = False
    any_spacing: bool = False
    channel_files: int | None = Field(default=None, ge=0)
    """Files CASE_0000, CASE_0001, ... that a case may have; 0: its channels are in one file, and a number at the end of
    a name is part of it. None, in earlier plans: as many as channels."""


class Plan(Record):
    """Everything decided about a dataset before training."""

    kind: ClassVar[str] = "plan"

    schema_version: Literal[1] = 1
    medmamba_version: str
    dataset_name: str
    dataset_hash: str
    fingerprint_hash: str
    channel_names: list[str] = Field(min_length=1)
    labels: dict[str, Annotated[int, Field(ge=0, lt=2**31)]]
    regions: dict[str, list[str]] | None = None
    """Regions to predict instead of labels: name to the label names it joins; None: each label is a class."""
    region_order: list[str] | None = None
    """Label name that is written for each region, in the order of writing: later regions overwrite earlier ones."""
    ignore_label: int | None = None
    left_right_pairs: list[list[str]] = Field(default_factory=list)
    """Labels that mirroring along the left-right axis exchanges, as [left, right]."""
    file_ending: str
    axis_order: list[int]
    """Canonical array axis that becomes plan axis 0, 1, 2: the coarsest (or flat) axis first."""
    normalization: list[Normalization]
    configurations: dict[FileName, Configuration] = Field(min_length=1)
    default_configuration: str
    reading: Reading = Reading()
    conventions: Literal["medmamba", "nnunet"] = "medmamba"
    """nnunet: of a model that nnU-Net trained, so that its masks are those of nnU-Net's predictor. Interpolated values
    are clipped, patches of one value are predicted, overlapping regions overwrite each other in their order, and a
    cascade passes its labels on through the image's own grid."""
    reorient: bool = True
    """Whether images are brought to canonical axes; a model trained on axes as they are stored gets them so."""
    options: PlanOptions | None = None
    """What was asked for; None in plans taken over from elsewhere."""
    decisions: list[Decision]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if sorted(self.axis_order) != [0, 1, 2]:
            raise ValueError(f"axis_order must be a permutation of [0, 1, 2], got {self.axis_order}")
        if len(self.normalization) != len(self.channel_names):
            raise ValueError(f"{len(self.channel_names)} channels but {len(self.normalization)} normalisations")
        if self.labels.get("background") != 0:
            raise ValueError("labels must contain 'background': 0")
        if self.default_configuration not in self.configurations:
            raise ValueError(f"default_configuration {self.default_configuration!r} is not among the configurations")
        if (self.regions is None) != (self.region_order is None):
            raise ValueError("regions and region_order must be given together")
        for name, parts in (self.regions or {}).items():
            unknown = [part for part in parts if part not in self.labels]
            if unknown or not parts:
                raise ValueError(f"region {name!r} must join labels of this plan, got {parts}")
        if self.regions is not None and len(self.region_order or []) != len(self.regions):
            raise ValueError("region_order must name one label for each region")
        if wrong := [name for name in self.region_order or [] if name not in self.labels]:
            raise ValueError(f"region_order names {wrong[0]!r}, which is no label of this plan")
        for key, configuration in self.configurations.items():
            if configuration.name != key:
                raise ValueError(f"configuration {key!r} calls itself {configuration.name!r}")
            stage, followed = configuration.previous_stage, {key}
            while stage is not None:
                if stage not in self.configurations:
                    raise ValueError(f"configuration {key!r} follows {stage!r}, which is not among the configurations")
                if stage in followed:
                    raise ValueError(f"configuration {key!r} follows itself")
                followed.add(stage)
                stage = self.configurations[stage].previous_stage
        return self

    @model_serializer(mode="wrap")
    def _as_earlier_plans(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the fields of converted models where they say nothing, so that other plans keep their hash."""
        made: dict[str, Any] = handler(self)
        usual = ("conventions", "reorient")
        return {
            key: value for key, value in made.items() if key not in usual or value != Plan.model_fields[key].default
        }

    @property
    def channel_files(self) -> int:
        """Files that the channels of a case may be spread over; 0: names of cases are never split."""
        return len(self.channel_names) if self.reading.channel_files is None else self.reading.channel_files

    @property
    def out_channels(self) -> int:
        """Channels that the network puts out: one a region, or one a label with the background."""
        return len(self.regions) if self.regions is not None else len(self.labels)

    @property
    def default(self) -> Configuration:
        """The configuration to train when none is asked for."""
        return self.configurations[self.default_configuration]
