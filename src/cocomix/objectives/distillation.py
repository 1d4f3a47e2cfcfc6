"""Distillation from a teacher that runs during training, or from stored draws of its predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.data.target_dataset import TargetDataset
from cocomix.data.token_dataset import TokenDataset
from cocomix.modeling.backbones import adapter_for
from cocomix.modeling.flops import causal_lm_flops_per_token
from cocomix.modeling.output import CoCoMixOutput
from cocomix.objectives.base import Batch, Cost, CostInputs, Objective, Surroundings, WindowData, num_next_tokens
from cocomix.objectives.config import DistillationConfig, ObjectiveConfig, RunSettings

# Shapes: B batch, T tokens, V vocabulary, K draws per position.

#: Key of the stored targets in `Batch.extra`.
TARGETS = "distillation_targets"
#: Bytes of the log-probabilities of teacher and student, in float32.
_BYTES_PER_LOGIT = 2 * 4


class Distillation(Objective):
    """temperature^2 * KL(teacher || student) of the next-token distributions (Hinton et al., arXiv 1503.02531)."""

    Config: ClassVar[type[ObjectiveConfig]] = DistillationConfig
    name = "distillation_loss"
    needs_logits = True

    def __init__(self, config: DistillationConfig, surroundings: Surroundings) -> None:
        super().__init__(config, surroundings)
        self.teacher = surroundings.teacher()
        adapter_for(self.teacher)  # refuses now a teacher whose FLOPs could not be counted at the end

    def count(self, batch: Batch) -> Int64[Tensor, ""]:
        return num_next_tokens(batch)

    def total(self, batch: Batch, output: CoCoMixOutput) -> Float[Tensor, ""]:
        assert output.logits is not None
        temperature = self.config.temperature
        target = self._teacher_logits(batch)[:, :-1].float() / temperature
        target = target[..., : output.logits.shape[-1]]  # rows beyond the tokenizer's tokens are padding
        divergence = F.kl_div(
            (output.logits[:, :-1].float() / temperature).log_softmax(-1),
            target.log_softmax(-1),
            reduction="sum",
            log_target=True,
        )
        return temperature**2 * divergence  # type: ignore[no-any-return]

    def culprit(self, batch: Batch) -> str | None:
        is_finite = bool(self._teacher_logits(batch).isfinite().all())
        return None if is_finite else f"the logits of the teacher {self.teacher.config.name_or_path}"

    @torch.no_grad()
    def _teacher_logits(self, batch: Batch) -> Float[Tensor, "B T V"]:
        logits: Tensor = self.teacher(**batch.windows.inputs(), use_cache=False).logits
        return logits

    def teacher_flops_per_token(self, context_length: int) -> float:
        return causal_lm_flops_per_token(self.teacher, context_length)

    @classmethod
    def cost(cls, config: Any, inputs: CostInputs) -> Cost:
        return Cost(targets=causal_lm_flops_per_token(inputs.teacher, inputs.context_length))

    @classmethod
    def memory_bytes(cls, config: Any, num_tokens: int, vocab_size: int) -> float:
        return _BYTES_PER_LOGIT * vocab_size * num_tokens


class SampledDistillation(Objective):
    """Distillation without a teacher, from K stored draws x_k of its distribution p at the temperature.

    temperature^2 * (-mean_k log q(x_k) - H(p)), where q is the student at the temperature. Value and gradient equal those of
    `Distillation` in expectation over the draws (Anshumann et al., arXiv 2503.16870).
    """

    Config: ClassVar[type[ObjectiveConfig]] = DistillationConfig
    name = "distillation_loss"
    needs_logits = True

    def count(self, batch: Batch) -> Int64[Tensor, ""]:
        return num_next_tokens(batch)

    def total(self, batch: Batch, output: CoCoMixOutput) -> Float[Tensor, ""]:
        assert output.logits is not None
        targets, temperature = batch.extra[TARGETS], self.config.temperature
        logits = output.logits[:, :-1].float() / temperature
        # mean_k CE(q, x_k) = logsumexp(z) - mean_k z[x_k]
        losses = logits.logsumexp(-1) - logits.gather(-1, targets.tokens).mean(-1)
        return temperature**2 * (losses - targets.entropy).sum()  # type: ignore[no-any-return]

    @classmethod
    def cost(cls, config: Any, inputs: CostInputs) -> Cost:
        if inputs.draws_flops is not None:
            return Cost(stored_targets=inputs.draws_flops)
        return Cost(stored_targets=causal_lm_flops_per_token(inputs.teacher, inputs.context_length))

    @classmethod
    def memory_bytes(cls, config: Any, num_tokens: int, vocab_size: int) -> float:
        return _BYTES_PER_LOGIT * vocab_size * num_tokens


def open_targets(config: DistillationConfig, run: RunSettings, data: TokenDataset) -> WindowData:
    """The stored targets that a run names.

    Raises:
        CocomixError: the targets belong to other tokens, another teacher or another temperature.
    """
    path: Path | None = config.targets
    assert path is not None
    stored = TargetDataset(path, data)
    if stored.temperature != config.temperature:
        raise CocomixError(
            f"the targets in {path} were drawn at temperature {stored.temperature}, but distillation.temperature is "
            f"{config.temperature}; set it to {stored.temperature}"
        )
    if run.teacher is not None and artifacts.fingerprint_of_path(run.teacher) != stored.settings["teacher"]:
        raise CocomixError(
            f"the targets in {path} were drawn from another teacher than {run.teacher}; name that teacher, or draw new "
            "targets with `cocomix distill-targets`"
        )
    inputs = {TARGETS: stored.fingerprint}
    return WindowData(TARGETS, stored.num_windows, stored.targets, inputs, stored.training_flops, source=stored)
