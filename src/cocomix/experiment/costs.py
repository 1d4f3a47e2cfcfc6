"""Time and disk of the stages whose FLOPs `cocomix plan` counts: training, labels and draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.base.kinds import TOKEN_DATASET
from cocomix.experiment.stages import Experiment, Machine
from cocomix.modeling.flops import training_flops_per_token
from cocomix.tools.plan.config import PlanConfig
from cocomix.tools.plan.costs import objectives_cost
from cocomix.tools.plan.inputs import PlannedText
from cocomix.tools.plan.plan import peak_flops
from cocomix.tools.plan.teachers import PlannedTeacher, planned_teacher
from cocomix.training.config import TrainConfig
from cocomix.training.students import settled
from cocomix.training.widths import meta_model


@dataclass(frozen=True)
class Cost:
    """Of one stage."""

    hours: float
    """On all devices together."""
    num_bytes: int
    """On disk."""


def costs_of(experiment: Experiment) -> dict[str, Cost]:
    """Costs by the name of a stage; stages of which nothing is known are left out."""
    assert experiment.machine is not None
    counter = _Counter(experiment, experiment.machine)
    return counter.costs() if counter.text is not None else {}


class _Counter:
    """Counts with shapes alone."""

    def __init__(self, experiment: Experiment, machine: Machine) -> None:
        self.experiment, self.machine = experiment, machine
        memory = None if machine.peak_tflops is None else 1.0  # which no cost here depends on
        self.spec = PlanConfig(device=machine.device, peak_tflops=machine.peak_tflops, memory_gb=memory).device_spec
        self.configs = {stage.name: stage.config for stage in experiment.stages}
        self.text, self.text_tokens = self._text()

    def costs(self) -> dict[str, Cost]:
        costs: dict[str, Cost] = {}
        for stage in self.experiment.stages:
            if stage.command == "train":
                costs[stage.name] = self._training(stage.config)
        for name, student in self.experiment.students.items():
            run: TrainConfig = self.configs[name]
            cost, tokens = self._objectives(run), min(run.num_tokens, self.text_tokens or run.num_tokens)
            labels = next((key for key, config in self.configs.items() if config and config.output == run.labels), None)
            if labels is not None and student.run.student.mixer.has_concepts:
                per_token = run.attribution.num_labels * (2 if self._num_concepts(run) < 2**16 else 4)
                hours = self._hours(tokens * cost.labels / run.concept_loss.end, self.configs[labels].compute.precision)
                costs[labels] = Cost(hours, tokens * per_token)
            if run.distillation.targets is not None and "targets" in self.configs:
                config = self.configs["targets"]
                hours = self._hours(tokens * cost.stored_targets / run.distillation.end, config.compute.precision)
                costs["targets"] = Cost(hours, tokens * (4 + 2 * config.num_samples))
        return costs

    def _training(self, run: TrainConfig) -> Cost:
        assert self.text is not None
        run = settled(run, downloads=False)
        model, cost = meta_model(run, self.text, self._num_concepts(run)), self._objectives(run)
        count = training_flops_per_token(model, self.text.context_length, "algorithmic", run.concept_loss.end)
        per_token = count + cost.student + cost.targets + (cost.labels if run.sae else 0.0)
        weights = 4 * sum(parameter.numel() for parameter in model.parameters())
        # The model, and checkpoints of weights and two moments.
        return Cost(self._hours(run.num_tokens * per_token, run.precision), weights * (1 + 3 * run.keep))

    def _objectives(self, run: TrainConfig) -> Any:
        assert self.text is not None
        teacher = self.configs.get("teacher")
        if teacher is not None:
            layer = int(self.experiment.values.get("layer", (teacher.student.num_layers - 1) // 2))
            planned = PlannedTeacher("", meta_model(teacher, self.text).backbone.requires_grad_(False), layer)
        else:
            planned = planned_teacher(run, None, self.text)
        return objectives_cost(run, planned, self._num_concepts(run), self.text.context_length)

    def _num_concepts(self, run: TrainConfig) -> int:
        """C, of the run or of the dictionary that is trained here."""
        sae = self.configs.get("sae")
        own = getattr(run.student.mixer, "num_concepts", None)
        if own is None and sae is None and run.student.mixer.has_concepts:
            raise CocomixError("the number of concepts is not known: give student.num_concepts, or leave out plan")
        return own or (1 if sae is None else sae.num_latents)

    def _hours(self, flops: float, precision: str) -> float:
        if precision == "auto":
            precision = "bfloat16" if self.spec.bfloat16_flops > self.spec.float32_flops else "float32"
        rate = self.machine.devices * peak_flops(self.spec, precision) * self.machine.utilisation
        return flops / rate / 3600

    def _text(self) -> tuple[PlannedText | None, int | None]:
        """Shape of the text and its number of tokens, each None where it is not known."""
        place, data = self.experiment.place("data"), self.configs.get("data")
        if place is not None and (place / artifacts.MANIFEST_NAME).exists():
            facts = artifacts.read(place, TOKEN_DATASET, files=()).facts
            return PlannedText(facts["vocab_size"], facts["context_length"]), facts["splits"]["train"]["num_tokens"]
        if data is None:
            return None, None
        vocab_size = self.machine.vocab_size or (data.vocab_size if data.tokenizer is None else None)
        text = None if vocab_size is None else PlannedText(vocab_size, data.context_length)
        return text, self.machine.text_tokens or data.max_tokens
