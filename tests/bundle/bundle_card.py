"""The model card of the bundles that tests export."""

from __future__ import annotations

from medmamba.bundle.options import BundleCard

CARD = BundleCard(
    licence="Apache-2.0", intended_use="The hippocampus in T1 MR, for research.", authors="A. Author", release="1.2.3"
)
