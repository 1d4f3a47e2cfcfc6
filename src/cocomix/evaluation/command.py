"""`eval`: loss, perplexity and bits per byte on a token dataset, causal probes, and standard benchmarks."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cocomix.base import artifacts
from cocomix.base.devices import Machine, this_machine
from cocomix.base.errors import CocomixError
from cocomix.base.hub import local_model
from cocomix.base.kinds import EVALUATION
from cocomix.data.token_dataset import TokenDataset
from cocomix.data.tokenizer import has_tokenizer, load_tokenizer
from cocomix.evaluation.config import EvalConfig
from cocomix.evaluation.loss import validation_loss
from cocomix.evaluation.probes import run_probes
from cocomix.evaluation.task_files import TaskFiles, find_task_files
from cocomix.labels.live import TeacherLabels
from cocomix.modeling.loading import check_data, load_causal_lm, product_size
from cocomix.modeling.model import CoCoMixForCausalLM

RESULT_NAME = "evaluation.json"


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Evaluate, or return an earlier evaluation with equal settings; the result is also in `evaluation.json`.

    Raises:
        CocomixError: an input can't be read or doesn't fit the model, or the output folder holds something else.
    """
    teacher = None if config.teacher is None else local_model(config.teacher)
    config = dataclasses.replace(config, model=local_model(config.model), teacher=teacher)
    dataset = TokenDataset(config.data, "validation") if config.data is not None else None
    task_files = [find_task_files(name, config.task_data) for name in config.tasks if config.task_data is not None]
    num_tokens = config.batch_size * (1 if dataset is None else dataset.context_length)
    size = functools.partial(product_size, config.model, num_tokens)
    machine = this_machine(config.compute, size, config.output)
    oracle = None
    if dataset is not None and teacher is not None and config.sae is not None:
        oracle = TeacherLabels(dataset, teacher, config.sae, config.layer, config.attribution, machine)
    settings: dict[str, Any] = {
        "model": artifacts.fingerprint_of_path(config.model),
        "data": dataset.fingerprint if dataset is not None else None,
        **config.settings(),
        **{name: None if oracle is None else oracle.settings[name] for name in ("teacher", "sae", "layer")},
        **machine.settings,
    }
    if task_files:
        settings["tasks"] = {files.name: files.fingerprint for files in task_files}
    with artifacts.begin(config.output, EVALUATION, settings, overwrite=config.overwrite) as finished:
        if not finished:
            with machine.products():
                result = _evaluate(config, dataset, task_files, oracle, machine)
            artifacts.write_json(config.output / RESULT_NAME, result)
            artifacts.finish(config.output)
        stored: dict[str, Any] = artifacts.read_json(config.output / RESULT_NAME)
        return stored


def _evaluate(
    config: EvalConfig,
    dataset: TokenDataset | None,
    task_files: list[TaskFiles],
    oracle: TeacherLabels | None,
    machine: Machine,
) -> dict[str, Any]:
    model = load_causal_lm(config.model, machine)
    result: dict[str, Any] = {}
    if dataset is not None:
        check_data(model, config.model, dataset)
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
        if oracle is not None:
            oracle.check()
        result["probes"] = {name: dataclasses.asdict(probe) for name, probe in probes.items()}
    return result


def _run_tasks(
    config: EvalConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, task_files: list[TaskFiles]
) -> dict[str, Any]:
    try:
        from cocomix.evaluation.benchmarks import run_benchmarks
    except ModuleNotFoundError as error:
        missing = (error.name or "lm_eval").partition(".")[0]
        raise CocomixError(f"--tasks needs {missing}; install it with `pip install lm-eval accelerate`") from error
    documents = {files.name: files.documents(config.limit) for files in task_files}
    return run_benchmarks(model, tokenizer, documents, batch_size=config.batch_size)


def _tokenizer(config: EvalConfig, dataset: TokenDataset | None) -> PreTrainedTokenizerFast:
    """The model's own tokenizer, or the dataset's, which was checked to fit the model."""
    if has_tokenizer(config.model):
        tokenizer = load_tokenizer(config.model)
        if tokenizer.eos_token_id is not None:
            return tokenizer
    if dataset is not None:
        return dataset.tokenizer()
    raise CocomixError(
        f"{config.model} holds no tokenizer with an end-of-sequence token; give --data, a token dataset that has the model's"
    )
