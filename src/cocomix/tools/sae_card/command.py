"""`cocomix train-sae`: autoencoders, each with its quality card."""

from __future__ import annotations

from cocomix.base.artifacts import Manifest
from cocomix.sae.config import TrainSaeConfig
from cocomix.sae.train import TrainedAutoencoder, train_autoencoders


def train_sae(config: TrainSaeConfig) -> tuple[Manifest, ...]:
    """Train autoencoders with their quality cards, continue an interrupted run, or recognise finished ones.

    Returns:
        a manifest for each layer, ascending; its facts hold the quality.
    """
    return train_autoencoders(config, write_card)


def write_card(trained: TrainedAutoencoder) -> None:
    """Write the card; the libraries that draw it are loaded after the training."""
    from cocomix.tools.sae_card import card

    card.write_card(trained)
