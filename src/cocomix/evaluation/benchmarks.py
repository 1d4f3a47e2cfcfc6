"""Standard benchmarks through lm-eval, on a model in memory, from files at hand.

lm-eval makes the requests from its own definition of a task and our rows (`task_files`), scores them with the model,
and computes the metrics. Nothing is fetched, moved or cast. All tasks are log-likelihoods of given text: nothing is
generated.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from cocomix.base.errors import CocomixError
from cocomix.base.progress import ProgressLine
from cocomix.evaluation.readers import Row
from cocomix.evaluation.task_files import load_benchmark

#: Bounds the logits of a batch, [tokens, vocabulary], where texts are long.
MAX_TOKENS_PER_BATCH = 8192

Documents = Mapping[str, Sequence[Row]]


def run_benchmarks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    benchmarks: Mapping[str, Documents],
    *,
    batch_size: int = 16,
) -> dict[str, Any]:
    """Score a causal LM on benchmarks.

    Args:
        model: in evaluation mode; used where it is and as it is.
        tokenizer: the model's.
        benchmarks: their names, each with the documents of its tasks (`TaskFiles.documents`).
        batch_size: maximum number of texts in one forward pass.

    Returns:
        `lm_eval_version`, and under `tasks` for each benchmark its metrics, each with `<metric>_standard_error` (None for a
        single item), and `num_items`, `num_requests`, `num_truncated`: how many requests lost the beginning of
        their context because the model's context is shorter. BLiMP also has every paradigm, its mean being unweighted.

    Raises:
        CocomixError: the tokenizer gives a token that the model does not have, or an answer alone is longer than the
            model's context.
    """
    results = {}
    with _quiet():
        scorer = _Scorer(model, tokenizer, batch_size)
        for name, documents in benchmarks.items():
            results[name] = _run(scorer, name, documents)
    return {"lm_eval_version": importlib.metadata.version("lm_eval"), "tasks": results}


def make_task(benchmark: str, task: str, rows: Sequence[Row]) -> ConfigurableTask:
    """A task of lm-eval, as lm-eval defines the benchmark, over rows at hand."""
    config = dict(load_benchmark(benchmark).lm_eval)
    if "include" in config:
        config = load_yaml(Path(lm_eval.__file__).parent / "tasks" / config.pop("include")) | config
    splits = {"training_split": None, "validation_split": None, "test_split": "test", "num_fewshot": 0}
    data = {"test": datasets.Dataset.from_list(list(rows))}
    return _Task(config=config | splits | {"task": task, "custom_dataset": lambda **_: data})


def _run(scorer: _Scorer, name: str, documents: Documents) -> dict[str, Any]:
    """Metrics of one benchmark."""
    scorer.start(name)
    tasks = {task: make_task(name, task, rows) for task, rows in documents.items()}
    # No bootstrap: it starts processes and prints; the errors below are closed forms.
    found = evaluate(lm=scorer, task_dict={"tasks": tasks}, bootstrap_iters=0, log_samples=True)
    scores = {
        task: _with_errors(found["results"][task], found["samples"][task], list(tasks[task].aggregation()))
        for task in tasks
    }
    counts = {
        "num_items": sum(map(len, documents.values())),
        "num_requests": scorer.num_requests,
        "num_truncated": scorer.num_truncated,
    }
    if load_benchmark(name).one_task_a_file:
        return counts | _mean(scores) | {"paradigms": scores}
    return counts | scores[name]


def _with_errors(
    results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> dict[str, float | None]:
    scores: dict[str, float | None] = {}
    for metric in metrics:
        value = float(results[f"{metric},none"])
        scores[metric] = value
        scores[f"{metric}_standard_error"] = standard_error(metric, value, [sample[metric] for sample in samples])
    return scores


def standard_error(metric: str, value: float, items: Sequence[Any]) -> float | None:
    """Standard error of a metric over items, to first order.

    Every metric here is a function f of a ratio r = sum(x) / sum(w) over independent items: accuracies are r itself with
    w = 1; perplexities exp(-r), of a log-likelihood x and w words or bytes. The error of r is that of a ratio
    estimator (with w = 1 the usual s / sqrt(n)), and f scales it by its slope.

    Args:
        metric: name of the metric.
        value: what it came out as.
        items: x of each item, or (x, w).
    """
    n = len(items)
    if n < 2:
        return None
    pairs = [item if isinstance(item, tuple) else (item, 1.0) for item in items]
    weight = sum(w for _, w in pairs)
    ratio = sum(x for x, _ in pairs) / weight
    error: float = math.sqrt(n / (n - 1) * sum((x - ratio * w) ** 2 for x, w in pairs)) / weight
    slope = 1 / math.log(2) if metric == "bits_per_byte" else value if metric.endswith("perplexity") else 1.0
    return error * slope


def _mean(scores: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """Unweighted mean accuracy over tasks, as BLiMP is reported."""
    errors = [score["acc_standard_error"] for score in scores.values()]
    known = [error for error in errors if error is not None]
    return {
        "acc": sum(score["acc"] or 0.0 for score in scores.values()) / len(scores),
        "acc_standard_error": math.hypot(*known) / len(scores) if len(known) == len(errors) else None,
    }


class _Task(ConfigurableTask):
    def build_all_requests(self, **kwargs: Any) -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar for every task that can't be turned off
            super().build_all_requests(**kwargs)


class _Scorer(HFLM):
    """lm-eval's scorer of a model in memory, with our progress line, and a check and a count of what is too long."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch_size: int) -> None:
        super().__init__(
            pretrained=model,
            backend="causal",
            tokenizer=tokenizer,
            max_length=getattr(model.config, "max_position_embeddings", None),
            batch_size=batch_size,
            logits_cache=False,  # would merge requests, and the progress line counts them
        )
        self.tokenizer.split_special_tokens = True  # a special token that a benchmark's text spells out is text
        self._max_batch_size = batch_size
        self._progress: ProgressLine | None = None
        self.start("")

    def start(self, benchmark: str) -> None:
        """Begin a benchmark: its name is shown, and counts start from zero."""
        self._benchmark = benchmark
        self.num_requests = 0
        self.num_truncated = 0

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        with ProgressLine(self._benchmark, len(requests), "requests") as self._progress:
            scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return scores

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        num_windows = sum(-(-len(self.tok_encode(*request.args)) // self.max_length) for request in requests)
        with ProgressLine(self._benchmark, num_windows, "windows") as self._progress:
            scores: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        return scores

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        longest_answer = max(len(answer) for _, _, answer in requests)
        if longest_answer > self.max_length:
            raise CocomixError(
                f"an answer in {self._benchmark} has {longest_answer} tokens, the model's context {self.max_length}; "
                f"leave {self._benchmark} out for this model"
            )
        # Not the tokenizer's size: some hold tokens for images, say, that no text gives.
        largest, size = max(max(context + answer) for _, context, answer in requests), self.model.config.vocab_size
        if largest >= size:
            raise CocomixError(
                f"the tokenizer gives token {largest}, the model has 0 to {size - 1}; they do not belong together"
            )
        lengths = [len(context) + len(answer) - 1 for _, context, answer in requests]  # the last token is not read
        self.num_requests += len(requests)
        self.num_truncated += sum(length > self.max_length for length in lengths)
        width = min(max(lengths), self.max_length)
        self.batch_size_per_gpu = max(1, min(self._max_batch_size, MAX_TOKENS_PER_BATCH // width))
        scores: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm=True)
        return scores

    @torch.no_grad()
    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        # Padding is on the right of causal attention: no mask is needed.
        logits: Tensor = self.model(input_ids=inps, use_cache=False).logits.float()
        if self._progress is not None:
            self._progress.advance(len(inps))
        return logits


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval's warnings and the progress bars of `datasets`, and keep standard output for results."""
    logger = logging.getLogger("lm_eval")
    level, bars_were_off = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)
        if not bars_were_off:
            datasets.enable_progress_bars()
