"""Segmentation networks: plain numbers in, logits out. ``build.py`` builds them by name."""

from medmamba.networks.build import available_networks as available_networks
from medmamba.networks.build import build_network as build_network
