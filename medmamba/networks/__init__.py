"""Segmentation networks: plain numbers in, logits out. See ``registry.py`` for the planned ones."""

from medmamba.networks.planned.registry import available_networks as available_networks
from medmamba.networks.planned.registry import build_network as build_network
