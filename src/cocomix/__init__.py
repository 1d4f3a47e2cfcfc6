"""Pretrain language models with continuous concepts, on any Hugging Face decoder.

Public names are loaded when they are first touched: `import cocomix` loads neither torch nor transformers. The architecture
is registered with `AutoConfig` and `AutoModelForCausalLM` as soon as `transformers` has loaded them.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cocomix.base.compute import ComputeConfig as ComputeConfig
    from cocomix.base.errors import CocomixError as CocomixError
    from cocomix.data.concept_dataset import ConceptDataset as ConceptDataset
    from cocomix.data.config import PrepareConfig as PrepareConfig
    from cocomix.data.prepare import prepare as prepare
    from cocomix.data.streaming import stream_concepts as stream_concepts
    from cocomix.data.target_dataset import TargetDataset as TargetDataset
    from cocomix.data.token_dataset import TokenDataset as TokenDataset
    from cocomix.evaluation.command import evaluate as evaluate
    from cocomix.evaluation.config import EvalConfig as EvalConfig
    from cocomix.evaluation.probes import run_probes as run_probes
    from cocomix.experiment.command import run as run
    from cocomix.experiment.config import RunConfig as RunConfig
    from cocomix.labels.attribution import ConceptExtractor as ConceptExtractor
    from cocomix.labels.config import AttributionConfig as AttributionConfig
    from cocomix.labels.config import DistillTargetsConfig as DistillTargetsConfig
    from cocomix.labels.config import ExtractConfig as ExtractConfig
    from cocomix.labels.distillation_targets import distill_targets as distill_targets
    from cocomix.labels.extract import extract as extract
    from cocomix.mixers.base import Mixer as Mixer
    from cocomix.mixers.config import register_mixer as register_mixer
    from cocomix.modeling.backbones import DecoderAdapter as DecoderAdapter
    from cocomix.modeling.backbones import register_adapter as register_adapter
    from cocomix.modeling.configuration import CoCoMixConfig as CoCoMixConfig
    from cocomix.modeling.loading import load_causal_lm as load_causal_lm
    from cocomix.modeling.model import CoCoMixForCausalLM as CoCoMixForCausalLM
    from cocomix.modeling.output import CoCoMixOutput as CoCoMixOutput
    from cocomix.objectives.base import Objective as Objective
    from cocomix.objectives.config import DistillationConfig as DistillationConfig
    from cocomix.objectives.config import HiddenRegressionConfig as HiddenRegressionConfig
    from cocomix.objectives.config import MultiTokenConfig as MultiTokenConfig
    from cocomix.objectives.config import register_objective as register_objective
    from cocomix.sae.config import SparseAutoencoderConfig as SparseAutoencoderConfig
    from cocomix.sae.config import TrainSaeConfig as TrainSaeConfig
    from cocomix.sae.model import SparseAutoencoder as SparseAutoencoder
    from cocomix.steering.steer import steer as steer
    from cocomix.tools.compare.command import CompareConfig as CompareConfig
    from cocomix.tools.compare.command import compare as compare
    from cocomix.tools.generate.command import generate as generate
    from cocomix.tools.generate.config import GenerateConfig as GenerateConfig
    from cocomix.tools.inspect.cards import CardReader as CardReader
    from cocomix.tools.inspect.cards import ConceptCard as ConceptCard
    from cocomix.tools.inspect.command import inspect as inspect
    from cocomix.tools.inspect.config import InspectConfig as InspectConfig
    from cocomix.tools.plan.config import PlanConfig as PlanConfig
    from cocomix.tools.plan.plan import make_plan as make_plan
    from cocomix.tools.plan.plan import plan as plan
    from cocomix.tools.sae_card.command import train_sae as train_sae
    from cocomix.tools.steer_eval.command import steer_eval as steer_eval
    from cocomix.tools.steer_eval.config import SteerEvalConfig as SteerEvalConfig
    from cocomix.training.command import train as train
    from cocomix.training.config import OptimizerConfig as OptimizerConfig
    from cocomix.training.config import ParallelConfig as ParallelConfig
    from cocomix.training.config import StudentConfig as StudentConfig
    from cocomix.training.config import TrainConfig as TrainConfig
    from cocomix.training.recipes import recipe as recipe

_OWNERS = {
    "CardReader": "tools.inspect.cards",
    "ConceptCard": "tools.inspect.cards",
    "InspectConfig": "tools.inspect.config",
    "inspect": "tools.inspect.command",
    "AttributionConfig": "labels.config",
    "CoCoMixConfig": "modeling.configuration",
    "CoCoMixForCausalLM": "modeling.model",
    "CoCoMixOutput": "modeling.model",
    "CocomixError": "base.errors",
    "ComputeConfig": "base.compute",
    "CompareConfig": "tools.compare.command",
    "ConceptDataset": "data.concept_dataset",
    "ConceptExtractor": "labels.attribution",
    "DecoderAdapter": "modeling.backbones",
    "Mixer": "mixers.base",
    "Objective": "objectives.base",
    "register_mixer": "mixers.config",
    "register_objective": "objectives.config",
    "EvalConfig": "evaluation.config",
    "ExtractConfig": "labels.config",
    "DistillTargetsConfig": "labels.config",
    "DistillationConfig": "objectives.config",
    "HiddenRegressionConfig": "objectives.config",
    "MultiTokenConfig": "objectives.config",
    "ParallelConfig": "training.config",
    "OptimizerConfig": "training.config",
    "PlanConfig": "tools.plan.config",
    "PrepareConfig": "data.config",
    "RunConfig": "experiment.config",
    "SparseAutoencoder": "sae.model",
    "SparseAutoencoderConfig": "sae.config",
    "StudentConfig": "training.config",
    "TargetDataset": "data.target_dataset",
    "TokenDataset": "data.token_dataset",
    "TrainConfig": "training.config",
    "TrainSaeConfig": "sae.config",
    "compare": "tools.compare.command",
    "distill_targets": "labels.distillation_targets",
    "GenerateConfig": "tools.generate.config",
    "SteerEvalConfig": "tools.steer_eval.config",
    "evaluate": "evaluation.command",
    "generate": "tools.generate.command",
    "extract": "labels.extract",
    "load_causal_lm": "modeling.loading",
    "make_plan": "tools.plan.plan",
    "plan": "tools.plan.plan",
    "prepare": "data.prepare",
    "recipe": "training.recipes",
    "register_adapter": "modeling.backbones",
    "run": "experiment.command",
    "run_probes": "evaluation.probes",
    "steer": "steering.steer",
    "steer_eval": "tools.steer_eval.command",
    "stream_concepts": "data.streaming",
    "train": "training.command",
    "train_sae": "tools.sae_card.command",
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


_AUTO_CONFIG = "transformers.models.auto.configuration_auto"


def _register() -> None:
    """Make the architecture known to `AutoConfig`, which then finds the model too."""
    importlib.import_module("cocomix.modeling.configuration")


class _Registration:
    """Finds the module of `AutoConfig`, as any finder would, and has the architecture registered once it has run."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _AUTO_CONFIG:
            return None
        sys.meta_path.remove(cls)
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: Any) -> None:
                run(module)
                _register()

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


if _AUTO_CONFIG in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _Registration)
