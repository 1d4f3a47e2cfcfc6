"""`eval`: loss, perplexity and bits per byte on a token dataset, causal probes, and standard benchmarks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError, require_at_least
from cocomix.base.kinds import EVALUATION
from cocomix.data.token_dataset import TokenDataset
from cocomix.data.tokenizer import has_tokenizer, load_tokenizer
from cocomix.evaluation.loss import validation_loss
from cocomix.evaluation.probes import run_probes
from cocomix.evaluation.task_files import TaskFiles, check_names, find_task_files
from cocomix.labels.config import AttributionConfig
from cocomix.labels.live import TeacherLabels
from cocomix.modeling.loading import load_causal_lm, local_model
from cocomix.modeling.model import CoCoMixForCausalLM

RESULT_NAME = "evaluation.json"


@dataclass(frozen=True)
class EvalConfig:
    """A model, and the data and benchmarks to evaluate it on."""

    model: Path
    """Any causal LM: a training run, a folder of `save_pretrained`, a GGUF file or a Hub name."""
    output: Path
    """Folder for `evaluation.json`."""
    data: Path | None = None
    """Token dataset with the model's tokenizer, for the loss on its validation split. Required without --tasks."""
    probes: bool = False
    """Also run the causal probes; needs a model with a concept mixer, and --data."""
    teacher: Path | None = None
    """Teacher for the `oracle` probe."""
    sae: Path | None = None
    """The teacher's autoencoder for the `oracle` probe, from `train-sae` or elsewhere."""
    layer: int | None = None
    """0-based block of the teacher after which the autoencoder reads; by default the one that its files name."""
    attribution: AttributionConfig = dataclasses.field(default_factory=AttributionConfig)
    """How the `oracle` probe's labels are chosen."""
    max_windows: int | None = None
    """Evaluate on N evenly spaced validation windows; by default on all."""
    tasks: tuple[str, ...] = ()
    """Benchmarks to run through lm-eval, such as lambada or blimp; docs/evaluation.md lists them all."""
    task_data: Path | None = None
    """Folder with the benchmarks' own published files, directly or in folders named after the benchmarks."""
    limit: int | None = None
    """Score the first N items of each benchmark (of each paradigm of blimp); by default all."""
    batch_size: int = 16
    """Maximum number of a benchmark's texts per forward pass; fewer if they are long."""
    overwrite: bool = False
    """Replace what an earlier run left in the output folder."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "max_windows", "limit", "batch_size")
        check_names(self.tasks)
        if self.data is None and not self.tasks:
            raise CocomixError("nothing to evaluate on: give --data, a token dataset, or --tasks, or both")
        if (self.task_data is None) != (not self.tasks):
            raise CocomixError("benchmarks need both --tasks, their names, and --task-data, the folder of their files")
        if self.limit is not None and not self.tasks:
            raise CocomixError("--limit applies to the items of --tasks; for --data use --max-windows")
        if self.max_windows is not None and self.data is None:
            raise CocomixError("--max-windows applies to the windows of --data; for --tasks use --limit")
        if self.sae is not None and not self.probes:
            raise CocomixError("--teacher and --sae are for the oracle probe: add --probes")
        if self.probes and self.data is None:
            raise CocomixError("--probes need --data, a token dataset")
        if (self.teacher is None) != (self.sae is None):
            raise CocomixError("the oracle probe needs both --teacher and --sae")


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Evaluate, or return an earlier evaluation with equal settings; the result is also in `evaluation.json`.

    Raises:
        CocomixError: an input can't be read or doesn't fit the model, or the output folder holds something else.
    """
    teacher = None if config.teacher is None else local_model(config.teacher)
    config = dataclasses.replace(config, model=local_model(config.model), teacher=teacher)
    dataset = TokenDataset(config.data, "validation") if config.data is not None else None
    task_files = [find_task_files(name, config.task_data) for name in config.tasks if config.task_data is not None]
    oracle = None
    if dataset is not None and teacher is not None and config.sae is not None:
        oracle = TeacherLabels(dataset, teacher, config.sae, config.layer, config.attribution)
    settings: dict[str, Any] = {
        "model": artifacts.fingerprint_of_path(config.model),
        "data": dataset.fingerprint if dataset is not None else None,
        "probes": config.probes,
        **{name: None if oracle is None else oracle.settings[name] for name in ("teacher", "sae", "layer")},
        "attribution": dataclasses.asdict(config.attribution),
        "max_windows": config.max_windows,
    }
    if task_files:
        settings |= {"tasks": {files.name: files.fingerprint for files in task_files}, "limit": config.limit}
    with artifacts.begin(config.output, EVALUATION, settings, overwrite=config.overwrite) as finished:
        if not finished:
            artifacts.write_json(config.output / RESULT_NAME, _evaluate(config, dataset, task_files, oracle))
            artifacts.finish(config.output)
        result: dict[str, Any] = artifacts.read_json(config.output / RESULT_NAME)
        return result


def _evaluate(
    config: EvalConfig, dataset: TokenDataset | None, task_files: list[TaskFiles], oracle: TeacherLabels | None
) -> dict[str, Any]:
    model = load_causal_lm(config.model)
    result: dict[str, Any] = {}
    if dataset is not None:
        dataset.check_model(config.model, model.config.vocab_size)
    if task_files:  # first, so that a missing package or a damaged file shows at once
        result |= _run_tasks(config, model, _tokenizer(config, dataset), task_files)
    if dataset is not None:
        result |= _losses(config, model, dataset, oracle)
    return result


def _losses(
    config: EvalConfig, model: PreTrainedModel, dataset: TokenDataset, oracle: TeacherLabels | None
) -> dict[str, Any]:
    loss = validation_loss(
        model, dataset, max_windows=config.max_windows, description=f"evaluating {config.model.name}"
    )
    result: dict[str, Any] = {
        "validation_loss": loss.loss,
        "perplexity": loss.perplexity,
        "bits_per_byte": loss.bits_per_byte(dataset),
        "num_tokens": loss.num_tokens,
    }
    if config.probes:
        if not isinstance(model, CoCoMixForCausalLM):
            raise CocomixError(f"{config.model} is a plain decoder; probes need a model with a concept mixer")
        extractor = None if oracle is None else oracle.extractor
        probes = run_probes(model, dataset, extractor, max_windows=config.max_windows)
        result["probes"] = {name: dataclasses.asdict(probe) for name, probe in probes.items()}
    return result


def _run_tasks(
    config: EvalConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, task_files: list[TaskFiles]
) -> dict[str, Any]:
    try:
        from cocomix.evaluation.benchmarks import run_benchmarks
    except ModuleNotFoundError as error:
        missing = (error.name or "lm_eval").partition(".")[0]
        raise CocomixError(f"--tasks needs {missing}; install it with `pip install 'cocomix[eval]'`") from error
    documents = {files.name: files.documents(config.limit) for files in task_files}
    return run_benchmarks(model, tokenizer, documents, batch_size=config.batch_size)


def _tokenizer(config: EvalConfig, dataset: TokenDataset | None) -> PreTrainedTokenizerFast:
    """The model's own tokenizer, or the dataset's, which was checked to fit the model."""
    if has_tokenizer(config.model):
        return load_tokenizer(config.model)
    if dataset is not None:
        return dataset.tokenizer()
    raise CocomixError(f"{config.model} holds no tokenizer; give --data, a token dataset that has the model's")
