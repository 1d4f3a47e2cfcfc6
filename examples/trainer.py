"""The method in one page: the student of `cocomix train`, trained with `transformers.Trainer`.

    python examples/trainer.py --data DATA --labels LABELS --student.mixer concept --output RUN

A window carries its tokens and, for each token, the concepts that a teacher's autoencoder found there. The model predicts
both, mixes the predicted concepts into its hidden states, and returns one loss: next token plus weighted concepts. So
`Trainer` needs nothing of ours but data and schedule. Options, windows and schedule are those of `cocomix train`, which adds
other objectives, resuming to the bit, and ranks that give the numbers of one. Needs `accelerate`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from cocomix import CocomixError, ConceptDataset, TokenDataset, TrainConfig
from cocomix.cli.options import parse
from cocomix.data.order import windows_of_step
from cocomix.training.optimizer import adamw, learning_rate
from cocomix.training.students import build_student, with_num_concepts


class Windows(IterableDataset[dict[str, torch.Tensor]]):
    """Training windows with their labels, in the order of `cocomix train`."""

    def __init__(self, config: TrainConfig, data: TokenDataset, labels: ConceptDataset | None, num_steps: int) -> None:
        self.config, self.data, self.labels, self.num_steps = config, data, labels, num_steps

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        num_windows = self.config.num_windows or (self.labels or self.data).num_windows
        for step in range(self.num_steps):
            for window in windows_of_step(self.config.seed, step, self.config.batch_size, num_windows).tolist():
                row = {name: tensor[0] for name, tensor in self.data.windows([window]).inputs().items()}
                row["labels"] = row["input_ids"]
                if self.labels is not None:
                    row["concept_labels"] = self.labels.labels([window])[0]
                yield row


class ConceptWeight(TrainerCallback):
    """The weight of the concept loss at each step."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def on_step_begin(self, _: Any, state: Any, __: Any, *, model: Any, **more: Any) -> None:
        model.config.concept_loss_weight = self.config.concept_loss.weight_at(state.global_step, state.max_steps)


def train(config: TrainConfig) -> list[dict[str, Any]]:
    """Train, save the model, and return what `Trainer` logged at every step."""
    if config.distillation.weight or config.hidden_regression.weight or config.sae is not None:
        raise CocomixError("this example knows next tokens and stored labels only; use `cocomix train`")
    data = TokenDataset(config.data, "train")
    labels = None if config.labels is None else ConceptDataset(config.labels, data)
    mixer = with_num_concepts(config, None if labels is None else labels.num_concepts)
    model = build_student(config, data, mixer)
    num_steps = -(-config.num_tokens // (config.batch_size * data.context_length))
    optimizer = adamw(model, config.optimizer)
    schedule = LambdaLR(
        optimizer, lambda step: learning_rate(config.optimizer, step, num_steps) / config.optimizer.learning_rate
    )
    arguments = TrainingArguments(
        output_dir=str(config.output),
        max_steps=num_steps,
        per_device_train_batch_size=config.batch_size,
        max_grad_norm=config.optimizer.max_gradient_norm,
        bf16=config.parallel.precision == "bfloat16",
        use_cpu=config.parallel.device == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
    )
    windows = Windows(config, data, labels, num_steps)
    weight = ConceptWeight(config)
    trainer = Trainer(model, arguments, train_dataset=windows, callbacks=[weight], optimizers=(optimizer, schedule))
    trainer.train()
    trainer.save_model()
    data.tokenizer().save_pretrained(config.output)
    return trainer.state.log_history[:-1]


if __name__ == "__main__":
    train(parse(TrainConfig, "trainer.py", "Train with transformers.Trainer.", sys.argv[1:]))
