"""The networks: build one from a configuration, load and save its weights."""

from __future__ import annotations

from configs import Config
from models.ddmemory import DDMemory
from models.network import AOT, DeAOT, Features, Network
from models.start import start_matching
from models.weights import load_encoder_weights, load_state, load_weights, save_weights

FAMILIES: dict[str, type[Network]] = {"aot": AOT, "deaot": DeAOT, "ddmemory": DDMemory}


def build_network(config: Config) -> Network:
    """Return the network that ``config.model`` describes, with ImageNet weights where the configuration names them."""
    network = FAMILIES[config.model.family](config)
    if config.model.encoder_weights is not None:
        load_encoder_weights(network.encoder, config.model.encoder, config.model.encoder_weights)
    if config.model.start == "matching":
        start_matching(network)
    return network


__all__ = ["FAMILIES", "DDMemory", "Features", "Network", "build_network", "load_encoder_weights", "load_state",
           "load_weights", "save_weights"]
