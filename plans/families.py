"""Network families as the planner sees them: how wide and deep they are, how they scan, in which frame, and why.

The families themselves are built by medmamba.networks, and medmamba.plans.cost.blocks has what a block of each costs.
A network of somebody else's package joins by :func:`medmamba.plans.cost.blocks.register_family`.
"""

from dataclasses import dataclass, replace
from typing import Literal

from medmamba.errors import ConfigError, unknown_name
from medmamba.plugins import find_network

Kind = Literal["scan", "plain", "residual"]


@dataclass(frozen=True)
class Rationale:
    """Rule, reason and source of one choice of a family; they are printed beside its value."""

    reason: str
    source: str
    rule: str = ""
    """Empty for the states, whose rule is the numbers themselves."""


OWN = Rationale("Stated by the package that registers the family.", "the family", rule="the family's own")


@dataclass(frozen=True)
class Family:
    """What the planner must know about a family of networks."""

    name: str
    source: str
    kind: Kind = "scan"
    """"scan": blocks in the planned frame; "plain" and "residual": nnU-Net's PlainConvUNet and ResidualEncoderUNet."""
    has_scan: bool = True
    """Whether the blocks scan at all."""
    parallel: bool = False
    """Whether every resolution stays alive to the end of the encoder, as a branch of its own."""
    bottleneck_only: bool = False
    """Whether only the coarsest stage has blocks."""
    stem_features: int = 16
    """Channels of a convolution stem at full resolution."""
    base_features: int = 16
    """Channels at full resolution from which the other stages double."""
    max_pools: int | None = 5
    """Halvings per axis at most; None: as many as the patch allows."""
    min_stages: int = 2
    """Stages that the network needs at least."""
    blocks: int = 1
    """Blocks per stage of the encoder."""
    first_block_level: int = 1
    """Halvings from which a stage has blocks, under a convolution stem; the coarsest stage always has them."""
    decoder_convs: int = 1
    """Convolutions of a decoder stage."""
    conv_blocks: int = 1
    """Residual convolution blocks before the blocks of each stage."""
    blocks_reason: str = ""
    """Why its stages have these blocks; empty: the reason common to families with blocks from that level on."""
    states: tuple[int, int] = (16, 8)
    """States per inner channel of the scan, in 2D and in 3D."""
    states_why: Rationale = OWN
    routes: str = "raster"
    """Route set of the scans, or a word for a fixed order."""
    routes_why: Rationale = OWN
    expand: int = 1
    """Inner width of the scan over the block's."""
    window: int = 0
    """Tokens of an attention window; 0: none."""
    backward_maps: float = 1.5
    """Temporary maps of the widest layer at full resolution where the backward pass begins; measured."""


MAX_FEATURES = {2: 512, 3: 320}
"""Largest number of channels. Source: nnU-Net."""

STEM_BLOCKS = 2
"""Convolutions of a convolution stem at full resolution."""

WINDOW_EDGE = {2: 8, 3: 4}
"""Edge of the attention windows of lamamba and mate, in tokens; both hold as many."""

DEFORMABLE_FROM = {2: 1, 3: 8}
"""Stride from which HRVMamba's depthwise convolutions are deformable: in 3D their 27 sampled positions are expensive at
high resolution."""

_FEWER_IN_3D = Rationale(
    reason="In 2D as published; in 3D fewer states limit time and memory of the scan.",
    source="the family's publication; the value for 3D is ours",
)
_STATES_AS_PUBLISHED = Rationale("As published.", "the family's publication")

_EVERY_AXIS = Rationale(
    rule="every axis runs fastest once, forwards and backwards",
    reason="Each voxel is reached from all sides, whichever way the structure lies.",
    source="VMamba, arXiv:2401.10166, cross scan; one pair of routes per axis in 3D is ours",
)
_ONE_WAY = Rationale(
    rule="one pass over the voxels, row by row",
    reason="As published: Mamba on the flattened map, in one direction.",
    source="U-Mamba, arXiv:2401.04722",
)
_NO_ROUTES = Rationale(rule="no routes", reason="The network does not scan.", source="the family's definition")


_BASELINE = Family(
    name="plain_unet",
    kind="plain",
    source="nnU-Net 2.8.1; dynamic-network-architectures 0.4.4",
    has_scan=False,
    stem_features=32,
    base_features=32,
    max_pools=None,
    min_stages=3,
    blocks=2,
    blocks_reason="As nnU-Net plans its plain U-Net.",
    decoder_convs=2,
    states=(1, 1),
    routes="none",
    routes_why=_NO_ROUTES,
    backward_maps=4.2,
)

_U_MAMBA_BOT = Family(
    name="u_mamba_bot",
    source="U-Mamba Bot, arXiv:2401.04722: residual U-Net, scan in the bottleneck",
    bottleneck_only=True,
    blocks_reason="As published: residual convolutions everywhere, a scan in the bottleneck only.",
    conv_blocks=2,
    states=(16, 16),
    states_why=_STATES_AS_PUBLISHED,
    routes="forward",
    routes_why=_ONE_WAY,
    expand=2,
)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "vm_unet",
            "VM-UNet, arXiv:2402.02491: gated scan blocks",
            first_block_level=2,
            states_why=_FEWER_IN_3D,
            routes_why=_EVERY_AXIS,
        ),
        Family(
            "mhs_vm",
            "MHS-VM, arXiv:2406.05992: several scan heads per block",
            first_block_level=2,
            states_why=_FEWER_IN_3D,
            routes="heads",
            routes_why=Rationale(
                rule="each head has orders of its own and their reverses: snake, diagonal, spiral, raster",
                reason="Each head sees the neighbourhood of a voxel in another order.",
                source="MHS-VM, arXiv:2406.05992; the orders in 3D are ours",
            ),
        ),
        Family(
            "hrvmamba",
            "HRVMamba, arXiv:2410.03174: parallel branches that keep the resolution",
            first_block_level=2,
            parallel=True,
            blocks_reason="No scan at the highest resolutions, where voxels are many and a scan is expensive; every "
            "coarser branch has blocks in each step.",
            states=(1, 1),
            states_why=_STATES_AS_PUBLISHED,
            routes_why=_EVERY_AXIS,
        ),
        Family(
            "vim",
            "Vim, arXiv:2401.09417: there and back through the whole map",
            states_why=_FEWER_IN_3D,
            routes="bidirectional",
            routes_why=Rationale(
                rule="row by row through all voxels, forwards and backwards",
                reason="As published: each voxel sees those before it and those after it.",
                source="Vim, arXiv:2401.09417",
            ),
        ),
        Family(
            "mamba3",
            "Mamba-3, arXiv:2603.15569: there and back through the whole map with trapezoidal steps",
            first_block_level=2,
            states=(16, 16),
            states_why=Rationale("As many as U-Mamba and SegMamba; language models have 128.", "medmamba"),
            routes="bidirectional",
            routes_why=Rationale(
                rule="row by row through all voxels, forwards and backwards",
                reason="Each voxel sees those before it and those after it; the paper, on language, scans forwards.",
                source="Vim, arXiv:2401.09417",
            ),
        ),
        Family(
            "mambaout",
            "MambaOut, arXiv:2405.07992: the block without a scan",
            has_scan=False,
            routes="none",
            routes_why=_NO_ROUTES,
        ),
        Family(
            "lamamba",
            "LaMamba, arXiv:2408.02615: scan and window attention",
            first_block_level=2,
            states_why=Rationale(
                reason="As many as vm_unet, so that only routes and attention differ; the published block has "
                "one state.",
                source="medmamba",
            ),
            routes="continuous",
            routes_why=Rationale(
                rule="a snake along every axis, forwards and backwards",
                reason="Consecutive voxels of a route always touch.",
                source="LaMamba, arXiv:2408.02615; the third axis in 3D is ours",
            ),
            window=WINDOW_EDGE[2] ** 2,
        ),
        Family(
            "mate",
            "LinGen, arXiv:2412.09856: rotary-major scan and windows",
            states=(16, 16),
            states_why=Rationale("As many as U-Mamba and SegMamba; the paper gives no number.", "medmamba"),
            routes="rotary:2",
            routes_why=Rationale(
                rule="one rotary-major order forwards and backwards in each block, the next order in the next block",
                reason="Few scans a block, and after one round of orders every axis has run fastest.",
                source="LinGen, arXiv:2412.09856",
            ),
            window=WINDOW_EDGE[2] ** 2,
        ),
        _U_MAMBA_BOT,
        replace(
            _U_MAMBA_BOT,
            name="u_mamba_enc",
            source="U-Mamba Enc, arXiv:2401.04722: residual U-Net, scan in every encoder stage",
            bottleneck_only=False,
            blocks_reason="Residual convolutions and a scan in every encoder stage; at full resolution convolutions "
            "only.",
        ),
        Family(
            "segmamba",
            "SegMamba, arXiv:2401.13560: gated convolution, scan in three orientations",
            conv_blocks=0,
            states=(16, 16),
            states_why=_STATES_AS_PUBLISHED,
            routes="tri",
            routes_why=Rationale(
                rule="forwards, backwards, and across the first axis of the patch",
                reason="The third route follows a structure along the first axis of the patch, where the others jump.",
                source="SegMamba, arXiv:2401.13560",
            ),
        ),
        _BASELINE,
        replace(
            _BASELINE,
            name="residual_unet",
            kind="residual",
            blocks_reason="As nnU-Net's residual encoder presets have them.",
            decoder_convs=1,
        ),
    )
}

RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6)
"""Residual encoder blocks per stage. Source: nnU-Net's residual encoder presets."""


ORIGINALS = {"u_mamba_bot_original": "u_mamba_bot", "u_mamba_enc_original": "u_mamba_enc"}
"""Networks that only trained models of others have, no plan chooses them; and the families whose facts they share."""


def family(name: str) -> Family:
    """The family of this name, of another package too; ConfigError names the nearest spelling of an unknown one."""
    return find_network(ORIGINALS.get(name, name), FAMILIES)


ROUTE_COUNT: dict[str, tuple[int, int]] = {
    "forward": (1, 1),
    "bidirectional": (2, 2),
    "cross": (4, 6),
    "raster": (4, 6),
    "raster_all": (4, 12),
    "snake": (4, 6),
    "diagonal": (4, 6),
    "spiral": (4, 6),
    "continuous": (4, 6),
    "rotary": (4, 8),
    "tri": (3, 3),
    "heads": (4, 6),
    "none": (0, 0),
}
"""Number of routes of a set, in 2D and in 3D. "heads" and "none" are no sets of their own: every head of MHS-VM has
one, of so many routes, and blocks without a scan have none."""


def selected_routes(name: str, spatial_dims: int) -> tuple[str, range]:
    """The set that a name such as ``"rotary:2-4"`` takes its routes from, and which of them.

    Raises ConfigError for an unknown set and for routes that the set does not have in 2 or 3 dimensions.
    """
    base, _, choice = name.partition(":")
    if base not in ROUTE_COUNT:
        raise unknown_name("route set", base, list(ROUTE_COUNT))
    count = ROUTE_COUNT[base][spatial_dims - 2]
    if not choice:
        return base, range(count)
    begin, _, end = choice.partition("-") if "-" in choice else ("0", "", choice)
    if not (begin.isdecimal() and end.isdecimal() and int(begin) < int(end) <= count):
        raise ConfigError(
            f"Route set {name!r} asks for {choice!r} routes; {base!r} has 1 to {count} in {spatial_dims} dimensions."
        )
    return base, range(int(begin), int(end))


def route_count(name: str, spatial_dims: int) -> int:
    """Number of routes of a set or of the part of it that a name asks for, in 2 or 3 dimensions."""
    return len(selected_routes(name, spatial_dims)[1])
