"""The training loop: one run from its first step, or its newest checkpoint, to the finished folder.

Read `Trainer.finish` first, then `_train_step`.

Everything random is a pure function of (seed, step), so the state consists of the parameters, the optimizer's moments, the
step and the metrics' counters. Validation happens at fixed steps; between two log lines nothing is read back from the
device. All ranks run the same code, and differ only in the windows of a step that they read.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cocomix.base import artifacts
from cocomix.base.checkpoints import (
    MAX_FILE_BYTES,
    Checkpoints,
    clear_checkpoints,
    restore_state,
    training_state,
    whole_tensors,
    write_state,
)
from cocomix.base.devices import device_spec, memory_bytes
from cocomix.base.errors import CocomixError
from cocomix.base.progress import ProgressLine, say
from cocomix.base.ranks import Ranks
from cocomix.base.stopping import Stopped, StopRequest
from cocomix.data.order import windows_of_step
from cocomix.data.token_dataset import TokenDataset
from cocomix.evaluation.loss import validation_loss
from cocomix.modeling.flops import training_flops_per_token
from cocomix.modeling.loading import check_data
from cocomix.modeling.losses import combined_loss
from cocomix.objectives.base import CONCEPT_LABELS, Batch
from cocomix.objectives.config import steps_until
from cocomix.training.batches import Batches
from cocomix.training.config import TrainConfig
from cocomix.training.deferred import DeferredWeights
from cocomix.training.engine import Engine
from cocomix.training.metrics import MetricsFile
from cocomix.training.model_card import write_card
from cocomix.training.nonfinite import StepValues, StepWatch
from cocomix.training.optimizer import adamw, clip_in_step, learning_rate
from cocomix.training.students import (
    build_objectives,
    build_student,
    num_learning_parameters,
    require_memory,
    trained_mixer,
)
from cocomix.training.trackers import Trackers
from cocomix.training.trainable import TrainableModule, gradient_norms

LOG_EVERY_STEPS = 10
#: Folder for the state before a step that was not finite.
NON_FINITE_FOLDER = "non_finite"


class Trainer:
    """The state of one run, restored from its newest checkpoint if there is one.

    Args:
        config: configuration of the run.
        batches: windows and labels to train on.
        settings: settings that determine the result, including `num_windows`.
        ranks: ranks that train together; the first one prints and writes.
        device: this rank's device.
    """

    def __init__(
        self, config: TrainConfig, batches: Batches, settings: Mapping[str, Any], ranks: Ranks, device: torch.device
    ) -> None:
        self.config, self.batches, self.data = config, batches, batches.data
        self.settings, self.num_windows = settings, int(settings["num_windows"])
        self.ranks, self.device = ranks, device
        self.validation = TokenDataset(config.data, "validation")
        data = batches.data
        mixer = trained_mixer(config, batches)
        num_shares = config.parallel.num_shares(ranks.size, ranks.num_on_node)
        require_memory(config, data, mixer, num_shares, memory_bytes(device))
        weights = DeferredWeights()
        is_deferred = num_shares > 1 and config.student.pretrained is None
        with weights if is_deferred else contextlib.nullcontext():
            model = build_student(config, data, mixer)
        if config.student.pretrained is not None:
            check_data(model.backbone, config.student.pretrained, data)
        for part in batches.more.values():
            part.to(device)
        self.objectives = build_objectives(config, batches, device)
        self.tokens_per_step = config.batch_size * data.context_length
        self.num_steps = -(-config.num_tokens // self.tokens_per_step)
        # Without those of the concept loss, which end with it.
        self.lasting_flops_per_token = training_flops_per_token(model, data.context_length, concept_loss_share=0.0)
        self.student = TrainableModule(model, self.objectives).train()
        self.engine = Engine(self.student, weights, config.parallel, ranks, device)
        pretrained = None if config.student.pretrained is None else model.backbone
        self.optimizer = adamw(self.student, config.optimizer, pretrained)
        self.watch = StepWatch(device)
        self.mixer_metrics = model.mixer.metrics(
            config.num_tokens, has_labels=CONCEPT_LABELS in batches.more, device=device
        )
        in_background = config.parallel.async_checkpoints
        self.checkpoints = Checkpoints(config.output, settings, config.keep, ranks, in_background=in_background)
        self.step, self.seconds = 0, 0.0
        self.metrics: MetricsFile | None = None
        self.trackers: Trackers | None = None
        checkpoint = self._resume()
        ranks.on_first_rank(lambda: self._open_records(checkpoint))
        self.logged_at = self.step, self.seconds

    def finish(self) -> artifacts.Manifest:
        """Train to the end and write the folder's content.

        Raises:
            CocomixError: a loss or gradient norm is not finite, or the disk is full.
            Stopped: Ctrl-C or SIGTERM, after a checkpoint.
        """
        config = self.config
        num_evaluations = min(config.num_evaluations, self.num_steps)
        evaluate_at = {round(self.num_steps * (i + 1) / num_evaluations) for i in range(num_evaluations)}
        progress = ProgressLine(
            f"training {config.output.name}",
            self.num_steps * self.tokens_per_step,
            completed=self.step * self.tokens_per_step,
            shown=self.ranks.is_first,
        )
        stopping = StopRequest(insists=self.ranks.size == 1)
        with progress, self._closing_trackers(), self.checkpoints.written(), stopping as request:
            self.timed_from = time.perf_counter()
            while self.step < self.num_steps:
                self._train_step()
                self._log(progress)
                if self.step in evaluate_at:
                    self._evaluate()
                signal_number = self.ranks.largest(request.signal_number)
                is_due = self.step % config.checkpoint_every_steps == 0 or signal_number
                if is_due and self.step < self.num_steps:
                    self._checkpoint()
                    if signal_number:
                        self.checkpoints.wait()
                        raise Stopped(
                            signal_number,
                            f"{config.output} stopped after step {self.step:,} of {self.num_steps:,}, and saved; the same "
                            "command continues from there",
                        )
        return self._write()

    def _train_step(self) -> None:
        """Run one optimizer step."""
        config = self.config
        batches = [self._batch(windows) for windows in self._micro_batches()]
        # Targets are counted before the first backward, so that each term is divided once, by the whole step's count.
        objectives = self.student.active_objectives(self.step, self.num_steps)
        targets = [torch.as_tensor(sum(o.count(b) for b in batches), device=self.device) for o in objectives]
        counts = self.ranks.sum(torch.stack(targets)).clamp(min=1)
        means = torch.zeros(len(objectives), device=self.device)
        for number, batch in enumerate(batches, start=1):
            with self.engine.micro_batch(is_last=number == len(batches)):
                sums = self.engine.forward(batch, self.step, self.num_steps)
                self.mixer_metrics.add(sums)
                weights = [o.config.weight_at(self.step, self.num_steps) for o in objectives]
                totals = [sums[o.name] for o in objectives]
                loss, parts = combined_loss(zip(weights, totals, counts, strict=True))
                means += torch.stack(parts).detach()
                self.engine.backward(loss)
        values = {o.name: mean for o, mean in zip(objectives, self.ranks.sum(means), strict=True)}
        values |= gradient_norms(self.student)
        self.watch.add(self.step, values)
        clip_in_step(self.optimizer, values["gradient_norm"], config.optimizer.max_gradient_norm)
        self.optimizer.found_inf = self.watch.found_inf  # type: ignore[attr-defined]
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.optimizer, self.step, self.num_steps, group["maximum"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def _windows(self, step: int) -> np.ndarray:
        return windows_of_step(self.config.seed, step, self.config.batch_size, self.num_windows)

    def _micro_batches(self) -> list[np.ndarray]:
        """Windows of each forward pass of this rank in this step; each rank reads one contiguous, equal part."""
        part = np.split(self._windows(self.step), self.ranks.size)[self.ranks.rank]
        return np.split(part, len(part) // (self.config.micro_batch_size or len(part)))

    def _batch(self, windows: np.ndarray) -> Batch:
        return self.batches.at(windows, self.step, self.num_steps).to(self.device)

    def _log(self, progress: ProgressLine) -> None:
        if self.step % LOG_EVERY_STEPS and self.step < self.num_steps:
            progress.advance(self.tokens_per_step)
            return
        values = self._read_values()[-1].values
        self.mixer_metrics.merge(self.ranks.size)
        counted = self.mixer_metrics.line(self.step * self.tokens_per_step)
        values |= {name: float(value) for name, value in counted.items()}
        speed, shown = self._speed()
        losses = {name: value for name, value in values.items() if name.endswith("loss")}
        progress.advance(self.tokens_per_step, **losses, **shown)
        self._record(**values, **speed)

    def _speed(self) -> tuple[dict[str, float], dict[str, str]]:
        """Speed since the last line: metrics to record, and a figure for the live line."""
        step, seconds = self.logged_at
        self.logged_at = self.step, self.seconds
        rate = (self.step - step) * self.tokens_per_step / (self.seconds - seconds)
        flops_per_second = rate * self._flops_per_token()
        written, spec = {"tokens_per_second": round(rate, 1)}, device_spec(self.device)
        if spec is None:
            return written, {"speed": f"{flops_per_second / 1e9:,.1f} GFLOP/s"}
        is_bfloat16 = self.config.parallel.precision == "bfloat16"
        peak = spec.bfloat16_flops if is_bfloat16 else spec.float32_flops
        utilization = flops_per_second / (peak * self.ranks.size)
        return written | {"model_flops_utilization": round(utilization, 4)}, {"MFU": f"{utilization:.1%}"}

    def _read_values(self) -> list[StepValues]:
        """Values of the steps since the last call; updates the clock, and stops the run if a value is not finite."""
        steps = self.watch.read()
        self._tick()
        for part in self.batches.more.values():
            part.check()
        failed = next((step for step in steps if not step.is_finite), None)
        if failed is not None:
            self._give_up(failed)
        return steps

    def _give_up(self, failed: StepValues) -> None:
        """Save the state before the failed step with the windows it read, and raise."""
        folder, windows = self.config.output / NON_FINITE_FOLDER, self._windows(failed.step).tolist()
        values = {name: str(value) for name, value in failed.values.items()}
        meta = {"step": failed.step + 1, "windows": windows, "values": values}
        write_state(folder, training_state(self.student, self.optimizer), meta, self.ranks)
        some_windows = ", ".join(map(str, windows[:8])) + (", …" if len(windows) > 8 else "")
        shown_values = ", ".join(f"{name} {value}" for name, value in values.items())
        culprits = (o.culprit(self._batch(np.array([window]))) for window in windows for o in self.objectives)
        culprit = next(filter(None, culprits), None)
        raise CocomixError(
            f"{self.config.output} is not finite at step {failed.step + 1} ({shown_values}), which read the training windows "
            f"{some_windows}; the state before it is saved in {folder}; "
            + (f"{culprit}: not finite either" if culprit else "a lower optimizer.learning_rate usually helps")
        )

    def _evaluate(self) -> None:
        with self._untimed(), self.engine.evaluating() as model:
            limit = self.config.max_validation_windows
            result = validation_loss(model, self.validation, max_windows=limit, ranks=self.ranks)
        self._record(validation_loss=result.loss)

    def _record(self, **values: float) -> None:
        """Write one line to the metrics file and the trackers; only the first rank has them."""
        if self.metrics is not None and self.trackers is not None:
            line = self._position() | values
            self.metrics.append(**line)
            self.trackers.log(line)

    def _position(self) -> dict[str, float]:
        tokens = self.step * self.tokens_per_step
        return {
            "step": self.step,
            "train_tokens": tokens,
            "train_flops": tokens * self._flops_per_token(),
            "train_seconds": round(self.seconds, 3),
        }

    def _share(self, end: float) -> float:
        """Share of the steps so far in which an objective with this end was minimised; before the first step, 1."""
        return min(self.step, steps_until(end, self.num_steps)) / self.step if self.step else 1.0

    def _flops_per_token(self) -> float:
        """FLOPs of the student per token, as a mean over the steps so far."""
        own = sum(self._share(o.config.end) * o.student_flops_per_token() for o in self.objectives)
        return self.lasting_flops_per_token + own

    def _tick(self) -> None:
        """Count the time since the last tick as training."""
        self.engine.synchronize()
        now = time.perf_counter()
        self.seconds += now - self.timed_from
        self.timed_from = now

    @contextlib.contextmanager
    def _untimed(self) -> Iterator[None]:
        """Context of work that does not count as training time, on a state that was checked to be finite."""
        self._read_values()
        yield
        self.timed_from = time.perf_counter()

    def _checkpoint(self) -> None:
        with self._untimed():
            self.mixer_metrics.merge(self.ranks.size)
            records = self.metrics.sync() if self.metrics is not None else {}
            meta = {"seconds": self.seconds, **records}
            self.checkpoints.save(self.step, training_state(self.student, self.optimizer) | self._counts(), meta)

    def _resume(self) -> dict[str, Any] | None:
        """Restore the newest checkpoint, if there is one; returns what was saved beside its tensors."""
        checkpoint = self.checkpoints.latest()
        if checkpoint is None:
            return None
        restore_state(self.student, self.optimizer, checkpoint, self._counts())
        self.step, self.seconds = checkpoint.meta["step"], checkpoint.meta["seconds"]
        if self.ranks.is_first:
            say(f"continuing {self.config.output} at step {self.step:,} of {self.num_steps:,}")
        return checkpoint.meta

    def _open_records(self, checkpoint: dict[str, Any] | None) -> None:
        """Open the metrics file and the trackers, on the first rank."""
        config = self.config
        self.metrics = MetricsFile(config.output, checkpoint)
        self.trackers = Trackers(config.trackers, config.output, self.settings, self.step)

    @contextlib.contextmanager
    def _closing_trackers(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self.trackers is not None:
                self.trackers.close()

    def _counts(self) -> dict[str, Tensor]:
        """The metrics' counters, by their names in a checkpoint."""
        return {f"metrics/{name}": tensor for name, tensor in self.mixer_metrics.state().items()}

    def _write(self) -> artifacts.Manifest:
        """Save model and tokenizer, then the manifest; then remove the checkpoints."""
        if not self.engine.is_sharded:
            return self.ranks.on_first_rank(lambda: self._write_folder(None))
        shards = self.checkpoints.folder / "model"
        state = self.student.model.saved_form.state_dict(keep_vars=True)
        names = {id(tensor): name for name, tensor in reversed(state.items())}  # tied weights once
        write_state(shards, {name: state[name].detach() for name in names.values()}, {}, self.ranks)
        return self.ranks.on_first_rank(lambda: self._write_folder(whole_tensors(shards)))

    def _write_folder(self, weights: dict[str, Tensor] | None) -> artifacts.Manifest:
        assert self.metrics is not None
        output, model = self.config.output, self.student.model
        self.metrics.sync()
        model.saved_form.save_pretrained(output, state_dict=weights, max_shard_size=MAX_FILE_BYTES)
        self.data.tokenizer().save_pretrained(output)
        facts = {
            **self._position(),
            "train_flops_per_token": self._flops_per_token(),
            "teacher_flops": self._teacher_flops(),
            "num_parameters": sum(p.numel() for p in model.parameters()),
            "num_learning_parameters": num_learning_parameters(model.parameters()),
            "num_steps": self.num_steps,
        }
        write_card(self.config, model.config.mixer, self.settings, facts)
        shutil.rmtree(output / NON_FINITE_FOLDER, ignore_errors=True)  # left by an earlier attempt that failed
        manifest = artifacts.finish(output, facts)
        clear_checkpoints(output)
        return manifest

    def _teacher_flops(self) -> float:
        """FLOPs of teachers: running during training, and computing labels and targets."""
        tokens, T = self.step * self.tokens_per_step, self.data.context_length
        flops = tokens * sum(self._share(o.config.end) * o.teacher_flops_per_token(T) for o in self.objectives)
        return flops + sum(
            part.training_flops(round(tokens * self._share(part.end)), self.num_windows)
            for part in self.batches.more.values()
        )
