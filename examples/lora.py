"""A pretrained decoder with a mixer, in which adapters of low rank (LoRA, by `peft`) learn together with the mixer.

    python examples/lora.py --data DATA --labels LABELS --student.pretrained MODEL --student.layer N --output RUN

`RUN/adapter` holds adapters and mixer, as `peft` saves them: `load` puts them into the decoder again. `RUN` itself holds the
whole model with the adapters merged in, which every command of cocomix takes. Of the options of `cocomix train` it has those
of data, length, concept loss and rate; it computes in float32 and is not resumed. Needs `peft`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from cocomix import CocomixError, CoCoMixForCausalLM, ConceptDataset, TokenDataset, TrainConfig
from cocomix.cli.options import parse
from cocomix.data.order import windows_of_step
from cocomix.training.optimizer import adamw, learning_rate
from cocomix.training.students import build_student, settled, with_num_concepts

#: Adapters in every linear map of the decoder's blocks. The mixer is new: it learns as a whole.
LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", modules_to_save=["mixer"])


def student(config: TrainConfig) -> CoCoMixForCausalLM:
    """The decoder with its mixer, before training."""
    data = TokenDataset(config.data)
    labels = None if config.labels is None else ConceptDataset(config.labels, data)
    return build_student(config, data, with_num_concepts(config, None if labels is None else labels.num_concepts))


def train(config: TrainConfig) -> PeftModel:
    """Train adapters and mixer, and save them alone and merged."""
    if config.student.pretrained is None or config.labels is None:
        raise CocomixError("this example needs --student.pretrained and --labels; use `cocomix train` for other runs")
    config = settled(config)
    data = TokenDataset(config.data)
    labels = ConceptDataset(config.labels, data)
    model = get_peft_model(student(config), LORA).train()
    optimizer = adamw(model, config.optimizer)  # over what peft left to learn
    num_steps = -(-config.num_tokens // (config.batch_size * data.context_length))
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optimizer, step, num_steps)
        model.get_base_model().config.concept_loss_weight = config.concept_loss.weight_at(step, num_steps)
        windows = windows_of_step(config.seed, step, config.batch_size, config.num_windows or labels.num_windows)
        inputs = data.windows(windows).inputs()
        loss = model(**inputs, labels=inputs["input_ids"], concept_labels=labels.labels(windows)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1} of {num_steps}: loss {loss.item():.3f}", file=sys.stderr)
    model.save_pretrained(config.output / "adapter")
    load(config, config.output / "adapter").merge_and_unload().save_pretrained(config.output)
    data.tokenizer().save_pretrained(config.output)
    return model.eval()


def load(config: TrainConfig, adapter: Path) -> PeftModel:
    """Adapters and mixer from their folder, in a decoder that was loaded anew."""
    return PeftModel.from_pretrained(student(settled(config)), str(adapter)).eval()


if __name__ == "__main__":
    train(parse(TrainConfig, "lora.py", "Train adapters and a mixer.", sys.argv[1:]))
