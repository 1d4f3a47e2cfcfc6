"""Pretrain language models with continuous concepts, on any Hugging Face decoder.

Public names are loaded when they are first touched: `import cocomix` loads neither torch nor transformers. Touching a
model name registers the architecture with `AutoConfig` and `AutoModelForCausalLM`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cocomix.base.errors import CocomixError as CocomixError
    from cocomix.comparison.command import CompareConfig as CompareConfig
    from cocomix.comparison.command import compare as compare
    from cocomix.concepts.attribution import AttributionConfig as AttributionConfig
    from cocomix.concepts.attribution import ConceptExtractor as ConceptExtractor
    from cocomix.concepts.distillation_targets import DistillTargetsConfig as DistillTargetsConfig
    from cocomix.concepts.distillation_targets import distill_targets as distill_targets
    from cocomix.concepts.extraction import ExtractConfig as ExtractConfig
    from cocomix.concepts.extraction import extract as extract
    from cocomix.concepts.sae import SparseAutoencoder as SparseAutoencoder
    from cocomix.concepts.sae import SparseAutoencoderConfig as SparseAutoencoderConfig
    from cocomix.concepts.sae_training import TrainSaeConfig as TrainSaeConfig
    from cocomix.concepts.sae_training import train_sae as train_sae
    from cocomix.data.concept_dataset import ConceptDataset as ConceptDataset
    from cocomix.data.prepare import PrepareConfig as PrepareConfig
    from cocomix.data.prepare import prepare as prepare
    from cocomix.data.streaming import stream_concepts as stream_concepts
    from cocomix.data.target_dataset import TargetDataset as TargetDataset
    from cocomix.data.token_dataset import TokenDataset as TokenDataset
    from cocomix.demo.pipeline import DemoConfig as DemoConfig
    from cocomix.demo.pipeline import run_demo as run_demo
    from cocomix.evaluation.command import EvalConfig as EvalConfig
    from cocomix.evaluation.command import evaluate as evaluate
    from cocomix.evaluation.probes import run_probes as run_probes
    from cocomix.interpretation.cards import CardReader as CardReader
    from cocomix.interpretation.cards import ConceptCard as ConceptCard
    from cocomix.interpretation.generation import GenerateConfig as GenerateConfig
    from cocomix.interpretation.generation import generate as generate
    from cocomix.interpretation.inspection import InspectConfig as InspectConfig
    from cocomix.interpretation.inspection import inspect as inspect
    from cocomix.interpretation.steer_eval import SteerEvalConfig as SteerEvalConfig
    from cocomix.interpretation.steer_eval import steer_eval as steer_eval
    from cocomix.modeling.backbones import DecoderAdapter as DecoderAdapter
    from cocomix.modeling.backbones import register_adapter as register_adapter
    from cocomix.modeling.configuration import CoCoMixConfig as CoCoMixConfig
    from cocomix.modeling.loading import load_causal_lm as load_causal_lm
    from cocomix.modeling.model import CoCoMixForCausalLM as CoCoMixForCausalLM
    from cocomix.modeling.output import CoCoMixOutput as CoCoMixOutput
    from cocomix.modeling.steering import steer as steer
    from cocomix.planning.plan import PlanConfig as PlanConfig
    from cocomix.planning.plan import make_plan as make_plan
    from cocomix.planning.plan import plan as plan
    from cocomix.planning.recipes import recipe as recipe
    from cocomix.training.config import DistillationConfig as DistillationConfig
    from cocomix.training.config import HiddenRegressionConfig as HiddenRegressionConfig
    from cocomix.training.config import OptimizerConfig as OptimizerConfig
    from cocomix.training.config import ParallelConfig as ParallelConfig
    from cocomix.training.config import StudentConfig as StudentConfig
    from cocomix.training.config import TrainConfig as TrainConfig
    from cocomix.training.loop import train as train

_OWNERS = {
    "CardReader": "interpretation.cards",
    "ConceptCard": "interpretation.cards",
    "InspectConfig": "interpretation.inspection",
    "inspect": "interpretation.inspection",
    "AttributionConfig": "concepts.attribution",
    "CoCoMixConfig": "modeling.configuration",
    "CoCoMixForCausalLM": "modeling.model",
    "CoCoMixOutput": "modeling.model",
    "CocomixError": "base.errors",
    "CompareConfig": "comparison.command",
    "ConceptDataset": "data.concept_dataset",
    "ConceptExtractor": "concepts.attribution",
    "DecoderAdapter": "modeling.backbones",
    "DemoConfig": "demo.pipeline",
    "EvalConfig": "evaluation.command",
    "ExtractConfig": "concepts.extraction",
    "DistillTargetsConfig": "concepts.distillation_targets",
    "DistillationConfig": "training.config",
    "HiddenRegressionConfig": "training.config",
    "ParallelConfig": "training.config",
    "OptimizerConfig": "training.config",
    "PlanConfig": "planning.plan",
    "PrepareConfig": "data.prepare",
    "SparseAutoencoder": "concepts.sae",
    "SparseAutoencoderConfig": "concepts.sae",
    "StudentConfig": "training.config",
    "TargetDataset": "data.target_dataset",
    "TokenDataset": "data.token_dataset",
    "TrainConfig": "training.config",
    "TrainSaeConfig": "concepts.sae_training",
    "compare": "comparison.command",
    "distill_targets": "concepts.distillation_targets",
    "GenerateConfig": "interpretation.generation",
    "SteerEvalConfig": "interpretation.steer_eval",
    "evaluate": "evaluation.command",
    "generate": "interpretation.generation",
    "extract": "concepts.extraction",
    "load_causal_lm": "modeling.loading",
    "make_plan": "planning.plan",
    "plan": "planning.plan",
    "prepare": "data.prepare",
    "recipe": "planning.recipes",
    "register_adapter": "modeling.backbones",
    "run_demo": "demo.pipeline",
    "run_probes": "evaluation.probes",
    "steer": "modeling.steering",
    "steer_eval": "interpretation.steer_eval",
    "stream_concepts": "data.streaming",
    "train": "training.loop",
    "train_sae": "concepts.sae_training",
}

__all__ = sorted(_OWNERS)


def __getattr__(name: str) -> Any:
    if name not in _OWNERS:
        raise AttributeError(f"module 'cocomix' has no attribute {name!r}")
    if name == "CoCoMixConfig":  # a configuration alone is of no use to the Auto classes
        importlib.import_module("cocomix.modeling.model")
    value = getattr(importlib.import_module(f"cocomix.{_OWNERS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_OWNERS})
