"""What a step minimises: the `Objective` seam.

Each objective gives a sum over its targets and, from the batch alone, how many targets there are. The loop divides once, by
the count of the whole step, so that accumulation, packing and uneven labels do not change the result.
"""

from __future__ import annotations

import abc

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from cocomix.base.errors import CocomixError
from cocomix.base.labels import IGNORED_LABEL
from cocomix.data.token_dataset import TokenDataset
from cocomix.labels.label_sources import TeacherLabels
from cocomix.mixers.base import STD_EPSILON
from cocomix.mixers.layout import Layout
from cocomix.mixers.mixing import MIXINGS
from cocomix.modeling.backbones import adapter_for
from cocomix.modeling.flops import BACKWARD_OVER_FORWARD, causal_lm_flops_per_token, span_flops_per_token
from cocomix.modeling.output import CoCoMixOutput
from cocomix.modeling.teacher import Teacher, load_teacher
from cocomix.training.batches import Batch
from cocomix.training.config import Schedule, TrainConfig
from cocomix.training.labels import ConceptLabels
from cocomix.training.schedule import scheduled_weight

# Shapes: B batch, T tokens, V vocabulary, A labels a token, K draws a position, D width.

#: Of the initial weights of heads, as the paper's of its concept head.
HEAD_STD = 0.02


class Objective(abc.ABC):
    """A weighted term of the loss.

    Args:
        weight: its factor in the sum.
        schedule: of the weight over the run.
    """

    name: str
    needs_logits = False
    needs_hidden_states = False
    head: nn.Module | None = None
    """What it learns beside the student; trained and saved with it, and left behind when the run is finished."""
    frozen: tuple[nn.Module, ...] = ()
    """What it reads, such as a teacher; to be moved to where the student runs."""

    def __init__(self, weight: float = 1.0, schedule: Schedule = "constant") -> None:
        self.weight, self.schedule = weight, schedule

    def weight_at(self, step: int, num_steps: int) -> float:
        """Its factor at a 0-based step of a run."""
        return scheduled_weight(self.weight, self.schedule, step, num_steps)

    @abc.abstractmethod
    def count(self, batch: Batch) -> Int64[Tensor, ""]:
        """Targets in the batch."""

    @abc.abstractmethod
    def total(self, batch: Batch, output: CoCoMixOutput) -> Float[Tensor, ""]:
        """Sum of the loss over the batch's targets, float32."""

    def teacher_flops_per_token(self, context_length: int) -> float:
        """What a teacher that runs along costs, a token."""
        return 0.0

    def student_flops_per_token(self) -> float:
        """What training its head costs, a token."""
        return 0.0


class NextToken(Objective):
    """-log p(x_{t+1} | x_{<=t})."""

    name = "lm_loss"

    def count(self, batch: Batch) -> Int64[Tensor, ""]:
        return torch.tensor(batch.windows.input_ids[:, 1:].numel())

    def total(self, batch: Batch, output: CoCoMixOutput) -> Float[Tensor, ""]:
        assert output.lm_loss_sum is not None
        return output.lm_loss_sum


class Concepts(Objective):
    """mean_k CE(z, I_k) over the labelled positions (paper, equation 4)."""

    name = "concept_loss"

    def count(self, batch: Batch) -> Int64[Tensor, ""]:
        assert batch.concept_labels is not None
        return (batch.concept_labels != IGNORED_LABEL).all(-1).sum()

    def total(self, batch: Batch, output: CoCoMixOutput) -> Float[Tensor, ""]:
        assert output.concept_loss_sum is not None
        return output.concept_loss_sum


class Distillation(Objective):
    """temperature^2 * KL(teacher || student) of the next-token distributions (Hinton et al., arXiv 1503.02531).

    Args:
        weight: its factor in the sum.
        teacher: frozen causal LM with the student's tokenizer.
        temperature: divides both models' logits.
        schedule: of the weight.
    """

    name = "distillation_loss"
    needs_logits = True

    def __init__(
        self, weight: float, teacher: PreTrainedModel, temperature: float = 1.0, schedule: Schedule = "constant"
    ) -> None:
        super().__init__(weight, schedule)
        adapter_for(teacher)  # its cost is counted at the end: refuse now what could not be counted then
        self.teacher = teacher
        self.frozen = (teacher,)
        self.temperature = temperature

    def count(self, batch: Batch) -> Int64[Tensor, ""]:
        return torch.tensor(batch.windows.input_ids[:, 1:].numel())

    def total(self, batch: Batch, output: CoCoMixOutput) -> Float[Tensor, ""]:
        assert output.logits is not None
        with torch.no_grad():
            target = self.teacher(**batch.windows.inputs(), use_cache=False).logits[:, :-1].float() / self.temperature
            target = target[..., : output.logits.shape[-1]]  # rows beyond the tokenizer's tokens are padding
        divergence = F.kl_div(
            (output.logits[:, :-1].float() / self.temperature).log_softmax(-1),
            target.log_softmax(-1),
            reduction="sum",
            log_target=True,
        )
        return self.temperature**2 * divergence

    def teacher_flops_per_token(self, context_length: int) -> float:
        return causal_lm_flops_per_token(self.teacher, context_length)


class SampledDistillation(Objective):
    """The same from K stored draws x_k of the teacher's distribution p at the temperature, without a teacher.

    temperature^2 * (-mean_k log q(x_k) - H(p)), q the student at the temperature. Over the draws, value and gradient have the
    means of `Distillation`'s (Anshumann et al., arXiv 2503.16870).

    Args:
        weight: its factor in the sum.
        temperature: that of the draws.
        schedule: of the weight.
    """

    name = "distillation_loss"
    needs_logits = True

    def __init__(self, weight: float, temperature: float = 1.0, schedule: Schedule = "constant") -> None:
        super().__init__(weight, schedule)
        self.temperature = temperature

    def count(self, batch: Batch) -> Int64[Tensor, ""]:
        return torch.tensor(batch.windows.input_ids[:, 1:].numel())

    def total(self, batch: Batch, output: CoCoMixOutput) -> Float[Tensor, ""]:
        assert output.logits is not None
        assert batch.targets is not None
        logits = output.logits[:, :-1].float() / self.temperature
        # mean_k CE(q, x_k) = logsumexp(z) - mean_k z[x_k]
        losses = logits.logsumexp(-1) - logits.gather(-1, batch.targets.tokens).mean(-1)
        return self.temperature**2 * (losses - batch.targets.entropy).sum()


class HiddenRegression(Objective):
    """Mean squared error a hidden dimension between a linear map of the student's residual stream and the teacher's.

    Both are normalised per token as the mixer does, x = (h - mean) / (std + 1e-5), so that the scale of neither counts.
    Positions are tokens; above an interleaving mixer a token is read where its next token is, at its concept position.

    Args:
        weight: its factor in the sum.
        teacher: opened after the block whose residual stream is the target.
        layer: 0-based block of the student after which its residual stream is read.
        hidden_size: width D of the student.
        seed: of the head's initial weights.
        schedule: of the weight.
    """

    name = "hidden_loss"
    needs_hidden_states = True
    head: nn.Linear

    def __init__(
        self,
        weight: float,
        teacher: Teacher,
        layer: int,
        hidden_size: int,
        *,
        seed: int = 0,
        schedule: Schedule = "constant",
        layout: Layout = Layout(1),  # noqa: B008 (it is frozen)
    ) -> None:
        super().__init__(weight, schedule)
        self.teacher, self.layer, self.layout = teacher, layer, layout
        self.frozen = (teacher.model,)
        self.head = nn.utils.skip_init(nn.Linear, hidden_size, int(teacher.model.config.hidden_size))
        # A stream of its own: torch's of the same seed would repeat numbers of the student's embedding.
        drawn = np.random.default_rng([seed, *self.name.encode()]).normal(0.0, HEAD_STD, self.head.weight.shape)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(drawn))
            self.head.bias.zero_()

    def count(self, batch: Batch) -> Int64[Tensor, ""]:
        return torch.tensor(batch.windows.input_ids.numel())

    def total(self, batch: Batch, output: CoCoMixOutput) -> Float[Tensor, ""]:
        assert output.hidden_states is not None
        target = normalized(self.teacher.residual(**batch.windows.inputs()).float())
        hidden = output.hidden_states[self.layer + 1]
        if hidden.shape[1] != target.shape[1]:
            hidden = hidden[:, self.layout.span(0, target.shape[1], hidden.device).read]
        predicted = self.head(normalized(hidden.float()))
        return F.mse_loss(predicted.float(), target, reduction="sum") / target.shape[-1]

    def teacher_flops_per_token(self, context_length: int) -> float:
        return span_flops_per_token(self.teacher.adapter, 0, self.teacher.layer + 1, context_length)

    def student_flops_per_token(self) -> float:
        return (1 + BACKWARD_OVER_FORWARD) * 2 * self.head.weight.numel()


def normalized(hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
    """Mean 0 and (unbiased) standard deviation 1 over each token's dimensions, as the method's normalise step."""
    return (hidden - hidden.mean(-1, keepdim=True)) / (hidden.std(-1, keepdim=True) + STD_EPSILON)


def build_objectives(config: TrainConfig, data: TokenDataset, labels: ConceptLabels | None) -> list[Objective]:
    """What a run minimises; a teacher is loaded once, whatever it serves."""
    objectives: list[Objective] = [NextToken()]
    if labels is not None and config.concept_loss_weight:
        objectives.append(Concepts(config.concept_loss_weight, config.concept_loss_schedule))
    distillation, regression = config.distillation, config.hidden_regression
    layer = regression_layer(config) if regression.weight else 0
    is_sampled = distillation.targets is not None
    teacher = None
    if regression.weight or (distillation.weight and not is_sampled):
        teacher = _teacher(config, data, labels)
    if distillation.weight and is_sampled:
        objectives.append(SampledDistillation(distillation.weight, distillation.temperature, distillation.schedule))
    elif distillation.weight:
        assert teacher is not None
        objectives.append(Distillation(distillation.weight, teacher, distillation.temperature, distillation.schedule))
    if regression.weight:
        assert teacher is not None
        middle = (adapter_for(teacher).num_blocks - 1) // 2
        opened = Teacher(teacher, middle if regression.teacher_layer is None else regression.teacher_layer)
        objectives.append(
            HiddenRegression(
                regression.weight,
                opened,
                layer,
                config.student.hidden_size,
                seed=config.seed,
                schedule=regression.schedule,
                layout=MIXINGS[config.student.mixing].layout(config.student.concept_stride),
            )
        )
    return objectives


def regression_layer(config: TrainConfig) -> int:
    """Block of the student whose residual stream is regressed: the given one, or the last below the mixer's place."""
    layer, student = config.hidden_regression.layer, config.student
    if layer is None:
        return max(0, min(student.insert_layer, student.num_layers) - 1)
    if layer >= student.num_layers:
        raise CocomixError(
            f"hidden_regression.layer is {layer}; a student of {student.num_layers} blocks takes 0 to "
            f"{student.num_layers - 1}"
        )
    return layer


def _teacher(config: TrainConfig, data: TokenDataset, labels: ConceptLabels | None) -> PreTrainedModel:
    assert config.teacher is not None
    shared = labels.extractor.teacher.model if isinstance(labels, TeacherLabels) else None
    teacher = load_teacher(config.teacher) if shared is None else shared
    data.check_model(config.teacher, teacher.config.vocab_size)
    return teacher
