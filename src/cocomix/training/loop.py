"""The training loop: linear, torch-native, exactly resumable.

Everything random is a pure function of (seed, step), so the state is the parameters, the optimizer's moments and the step.
Validation happens at fixed steps; between two log lines nothing is read back from the device.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch

from cocomix.base import artifacts
from cocomix.base.checkpoints import Checkpoints, restore_state, state_of
from cocomix.base.errors import CocomixError
from cocomix.base.progress import ProgressLine, say
from cocomix.data.order import windows_of_step
from cocomix.data.token_dataset import TokenDataset
from cocomix.evaluation.loss import validation_loss
from cocomix.modeling.flops import training_flops_per_token
from cocomix.modeling.loading import local_model
from cocomix.modeling.mixers import ConceptMixer
from cocomix.training.batches import Batch, Batches, distillation_targets
from cocomix.training.config import OptimizerConfig, TrainConfig
from cocomix.training.labels import concept_labels
from cocomix.training.metrics import MAX_DEAD_AFTER_TOKENS, ConceptMetrics, MetricsFile
from cocomix.training.metrics import NAME as METRICS_NAME
from cocomix.training.objectives import build_objectives, regression_layer
from cocomix.training.schedule import learning_rate
from cocomix.training.students import build_student
from cocomix.training.trained import TrainedStudent, gradient_norms

KIND = "training-run"
LOG_EVERY_STEPS = 10


def train(config: TrainConfig) -> artifacts.Manifest:
    """Train a model, continue an interrupted run, or recognise a finished one.

    The folder holds the model as `save_pretrained` writes it (a plain Hugging Face decoder where the mixer is `none`),
    its tokenizer, and `metrics.jsonl`.
    """
    if config.teacher is not None:
        config = dataclasses.replace(config, teacher=local_model(config.teacher))
    data = TokenDataset(config.data, "train")
    batches = Batches(data, concept_labels(config, data), distillation_targets(config, data))
    settings = _settings_of(config, batches)
    options = dataclasses.asdict(config)
    with artifacts.begin(config.output, KIND, settings, overwrite=config.overwrite, config=options) as finished:
        if finished:
            say(f"{config.output}: the training run is finished already")
            Checkpoints(config.output).clear()  # in case the former process ended right before it
            return finished
        return _Run(config, batches, settings["num_windows"]).finish()


def _settings_of(config: TrainConfig, batches: Batches) -> dict[str, Any]:
    """What determines the result: options without paths, and the fingerprints of the inputs."""
    settings = dataclasses.asdict(config)
    for name in ("output", "overwrite", "checkpoint_every_steps", "keep", "trackers"):
        del settings[name]
    for name in ("data", "labels", "teacher", "sae", "layer", "attribution"):  # inputs, below
        del settings[name]
    del settings["distillation"]["targets"]
    if config.hidden_regression.weight:
        settings["hidden_regression"]["layer"] = regression_layer(config)
    settings["precision"] = settings.pop("parallel")["precision"]
    if config.student.mixer == "none":  # what says how to insert is of no account
        for name in ("mixing", "insert_layer", "position_mode", "num_active_concepts"):
            del settings["student"][name]
    settings["num_windows"] = config.num_windows or batches.num_windows
    if settings["num_windows"] > batches.num_windows:
        raise CocomixError(
            f"num_windows is {config.num_windows}, but only {batches.num_windows} windows are "
            + ("there" if batches.labels is None and batches.targets is None else "labelled")
        )
    settings["inputs"] = {
        "teacher": artifacts.fingerprint_of_path(config.teacher) if config.teacher is not None else None,
        **batches.inputs,
    }
    return settings


class _Run:
    """The state of one run, from where its newest checkpoint left it."""

    def __init__(self, config: TrainConfig, batches: Batches, num_windows: int) -> None:
        data, labels = batches.data, batches.labels
        self.config, self.batches, self.data, self.num_windows = config, batches, data, num_windows
        self.validation = TokenDataset(config.data, "validation")
        self.model = build_student(config, data, labels.num_concepts if labels is not None else config.num_concepts)
        self.model.train()
        self.objectives = build_objectives(config, data, labels)
        self.trained = TrainedStudent(self.model, self.objectives)
        self.optimizer = _optimizer(self.trained, config.optimizer)
        self.concept_metrics = ConceptMetrics(
            self.model.config.num_concepts,
            min(config.num_tokens // 10, MAX_DEAD_AFTER_TOKENS),
            has_labels=labels is not None,
        )
        self.tokens_per_step = config.batch_size * data.context_length
        self.num_steps = -(-config.num_tokens // self.tokens_per_step)
        self.flops_per_token = training_flops_per_token(self.model, data.context_length)
        self.flops_per_token += sum(o.student_flops_per_token() for o in self.objectives)
        self.checkpoints = Checkpoints(config.output)
        self.step, self.seconds = 0, 0.0
        num_metric_bytes = 0
        latest = self.checkpoints.latest()
        if latest is not None:
            tensors, meta = latest
            restore_state(self.trained, self.optimizer, tensors)
            self.concept_metrics.restore({name: tensors[f"metrics/{name}"] for name in self.concept_metrics.state()})
            self.step, self.seconds, num_metric_bytes = meta["step"], meta["seconds"], meta["num_metric_bytes"]
            say(f"continuing {config.output} at step {self.step:,} of {self.num_steps:,}")
        self.metrics = MetricsFile(config.output, num_metric_bytes)

    def finish(self) -> artifacts.Manifest:
        """Run to the end and write the folder's content."""
        evaluate_at = {
            round(self.num_steps * (i + 1) / self.config.num_evaluations) for i in range(self.config.num_evaluations)
        }
        with ProgressLine(
            f"training {self.config.output.name}",
            self.num_steps * self.tokens_per_step,
            completed=self.step * self.tokens_per_step,
        ) as progress:
            while self.step < self.num_steps:
                started = time.perf_counter()
                losses = self._train_step()
                self.seconds += time.perf_counter() - started
                self._log(losses, progress)
                if self.step in evaluate_at:
                    self._evaluate()
                if self.step % self.config.checkpoint_every_steps == 0 and self.step < self.num_steps:
                    self._checkpoint()
        return self._write()

    def _train_step(self) -> dict[str, torch.Tensor]:
        """One optimizer step; returns each objective's mean loss."""
        config = self.config
        windows = windows_of_step(config.seed, self.step, config.batch_size, self.num_windows)
        size = config.micro_batch_size or config.batch_size
        batches = [self._batch(windows[start : start + size]) for start in range(0, len(windows), size)]
        # Counted before the first backward: one division a term, by the count of the whole step.
        counts = {o.name: sum(o.count(batch) for batch in batches) for o in self.objectives}
        means = {o.name: torch.zeros(()) for o in self.objectives}
        for batch in batches:
            sums = self.trained(batch)
            self.concept_metrics.add(sums)
            loss = torch.zeros(())
            for objective in self.objectives:
                mean = sums[objective.name] / torch.as_tensor(counts[objective.name]).clamp(min=1)
                loss = loss + objective.weight_at(self.step, self.num_steps) * mean
                means[objective.name] += mean.detach()
            loss.backward()
        means |= gradient_norms(self.trained)
        means["gradient_norm"] = torch.nn.utils.clip_grad_norm_(
            self.trained.parameters(), config.optimizer.max_gradient_norm
        )
        rate = learning_rate(config.optimizer, self.step, self.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return means

    def _batch(self, windows: Any) -> Batch:
        return self.batches.at(windows)

    def _log(self, losses: dict[str, torch.Tensor], progress: ProgressLine) -> None:
        if self.step % LOG_EVERY_STEPS and self.step < self.num_steps:
            progress.advance(self.tokens_per_step)
            return
        if isinstance(self.model.mixer, ConceptMixer):
            self.concept_metrics.merge()
            losses = losses | self.concept_metrics.line(self.step * self.tokens_per_step)
        values = {name: float(value) for name, value in losses.items()}
        if not all(torch.isfinite(torch.tensor(list(values.values())))):
            raise CocomixError(
                f"the loss of {self.config.output} is not finite at step {self.step}: {values}; "
                "a lower learning_rate usually helps"
            )
        progress.advance(self.tokens_per_step, **{k: v for k, v in values.items() if k.endswith("loss")})
        self.metrics.append(**self._position(), **values)

    def _evaluate(self) -> None:
        result = validation_loss(self.model, self.validation, max_windows=self.config.max_validation_windows)
        self.metrics.append(**self._position(), validation_loss=result.loss)

    def _position(self) -> dict[str, float]:
        tokens = self.step * self.tokens_per_step
        return {
            "step": self.step,
            "train_tokens": tokens,
            "train_flops": tokens * self.flops_per_token,
            "train_seconds": round(self.seconds, 3),
        }

    def _checkpoint(self) -> None:
        meta = {"seconds": self.seconds, "num_metric_bytes": self.metrics.sync()}
        self.concept_metrics.merge()
        counts = {f"metrics/{name}": tensor for name, tensor in self.concept_metrics.state().items()}
        self.checkpoints.save(self.step, state_of(self.trained, self.optimizer) | counts, meta)

    def _write(self) -> artifacts.Manifest:
        """Save model and tokenizer, then the manifest; checkpoints go last, when they are no longer needed."""
        self.metrics.close()
        model = self.model.backbone if self.model.mixer is None else self.model
        model.save_pretrained(self.config.output)
        self.data.tokenizer().save_pretrained(self.config.output)
        parameters = list(self.model.parameters())
        facts = {
            **self._position(),
            "train_flops_per_token": self.flops_per_token,
            "teacher_flops": self._teacher_flops(),
            "num_parameters": sum(p.numel() for p in parameters),
            "num_steps": self.num_steps,
        }
        manifest = artifacts.finish(self.config.output, facts, timed=[METRICS_NAME])
        self.checkpoints.clear()
        return manifest

    def _teacher_flops(self) -> float:
        """What teachers cost on top: running along, and computing labels and targets."""
        tokens = self.step * self.tokens_per_step
        flops = tokens * sum(o.teacher_flops_per_token(self.data.context_length) for o in self.objectives)
        for stored in (self.batches.labels, self.batches.targets):
            if stored is not None:
                flops += stored.training_flops(tokens, self.num_windows)
        return flops


def _optimizer(student: TrainedStudent, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW; only matrices are decayed."""
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)
