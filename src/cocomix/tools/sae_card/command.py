"""`cocomix train-sae`: autoencoders, each with its quality card."""

from __future__ import annotations

from typing import Any

from cocomix.base.artifacts import Manifest
from cocomix.sae.train import TrainSaeConfig, train_autoencoders


def train_sae(config: TrainSaeConfig) -> tuple[Manifest, ...]:
    """Train autoencoders with their quality cards, continue an interrupted run, or recognise finished ones.

    Returns:
        a manifest for each layer, ascending; its facts hold the quality.
    """
    return train_autoencoders(config, write_card)


def write_card(*arguments: Any, **options: Any) -> None:
    """As `tools.sae_card.card.write_card`, whose drawing library is loaded when the training is over."""
    from cocomix.tools.sae_card import card

    card.write_card(*arguments, **options)
