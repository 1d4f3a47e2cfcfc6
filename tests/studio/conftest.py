"""A demo of the studio's own: a model of random weights whose text, names and contexts are full of HTML."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from cocomix.base import artifacts
from cocomix.base.kinds import INSPECTION
from cocomix.data.tokenizer import train_tokenizer
from cocomix.modeling.configuration import CoCoMixConfig
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.steering.concept_metadata import ActivationStatistics, write_statistics
from cocomix.steering.concept_names import write_names
from cocomix.studio.model import StudioModel
from cocomix.studio.model_cache import ModelCache
from cocomix.studio.runs import find_runs
from cocomix.tools.inspect.cards import SUMMARY_NAME, ConceptCard, Context, Neighbour, TokenEffect, write_cards

NUM_CONCEPTS = 24
CONTEXT_LENGTH = 640
#: Would leave a trace in the page if it ever ran.
ATTACK = "<img src=x onerror=\"document.title='attacked'\"><script>document.title='attacked'</script>"
NAMES = {3: "import statements", 5: "string formatting", 7: ATTACK, 11: "imports <b>bold</b>"}


@dataclass(frozen=True)
class Demo:
    """Folders of the studio's demo."""

    root: Path
    model: Path
    inspection: Path


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """A folder as `cocomix run demo` leaves it, as far as the studio looks at it; tests must not write into it."""
    root = tmp_path_factory.mktemp("demos") / "demo"
    made = Demo(root, root / "cocomix", root / "inspection")
    tokenizer = train_tokenizer([ATTACK, "<b>def</b> read(self, path): return path\n", "import os, sys\n"] * 20, 320)
    torch.manual_seed(0)
    backbone = LlamaConfig(
        vocab_size=320,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=6,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = CoCoMixConfig(
        backbone_config=backbone,
        layer=1,
        num_concepts=NUM_CONCEPTS,
        num_active_concepts=5,
        initializer_range=0.5,
        mixing="interleave_residual",
    )
    model = CoCoMixForCausalLM(config)
    with torch.no_grad():
        # A text that ended by chance would end the tests that interrupt it.
        model.get_output_embeddings().weight[tokenizer.eos_token_id] = 0
    model.save_pretrained(made.model)
    tokenizer.save_pretrained(made.model)
    write_names(made.model, NAMES, NUM_CONCEPTS)
    ones = torch.ones(NUM_CONCEPTS)
    directions = torch.randn(NUM_CONCEPTS, 48)
    directions[5] = 0
    write_statistics(made.model, ActivationStatistics(1000, 0.2 * ones, 2 * ones, ones, 5 * ones, 2 * ones, directions))
    for name, last in (("cocomix", 3.25), ("ntp", 3.5)):
        write_metrics(root / name, last)
    fingerprint = artifacts.fingerprint_of_path(made.model)
    with artifacts.begin(made.inspection, INSPECTION, {"model": fingerprint}):
        write_cards(made.inspection, [card(concept) for concept in range(NUM_CONCEPTS)])
        artifacts.write_json(made.inspection / SUMMARY_NAME, {"num_concepts": NUM_CONCEPTS})
        (made.inspection / "index.html").touch()
        artifacts.finish(made.inspection)
    return made


@pytest.fixture(scope="session")
def model_cache(demo: Demo) -> ModelCache:
    return ModelCache(find_runs([demo.root]))


@pytest.fixture
def model(model_cache: ModelCache) -> StudioModel:
    return model_cache.model("")


def write_metrics(run: Path, last: float) -> None:
    """A run's record of three measurements."""
    run.mkdir(exist_ok=True)
    lines = [
        {
            "step": step,
            "train_tokens": 1000 * step,
            "train_flops": 1e9 * step,
            "train_seconds": 2.0 * step,
            "validation_loss": last + 1 / step,
        }
        for step in (1, 2, 4)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def card(concept: int) -> ConceptCard:
    """A card whose every text is an attack."""
    name = NAMES.get(concept, f"concept {concept}")
    effects = (TokenEffect(1, ATTACK, 0.5), TokenEffect(2, "</table>", 0.25))
    return ConceptCard(
        concept=concept,
        name=name,
        made_name=name,
        label_rate=0.1,
        num_labels=100,
        prediction_rate=0.2,
        num_predicted=200,
        sae_rate=None,
        usual=2.0,
        precision=0.5,
        recall=None,
        mean_probability=None,
        evaluated_label_rate=None,
        compress_norm=1.0,
        promoted=effects,
        suppressed=effects,
        measured_promoted=effects,
        measured_suppressed=effects,
        measured_change=0.1,
        nearest=(Neighbour((concept + 1) % NUM_CONCEPTS, 0.5),),
        nearest_predicted=(),
        contexts=(Context("prediction", ATTACK, "<i>", "</div>", 2.5, 0, 3),),
    )
