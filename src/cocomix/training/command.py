"""`train`: collects what a run depends on, and starts, continues or recognises it by its folder."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import torch

from cocomix.base import artifacts
from cocomix.base.checkpoints import clear_checkpoints
from cocomix.base.devices import chosen_precision, this_device
from cocomix.base.errors import CocomixError
from cocomix.base.formats import counted, format_count
from cocomix.base.hub import local_model, require_known_place
from cocomix.base.kinds import TRAINING_RUN
from cocomix.base.progress import say
from cocomix.base.ranks import Ranks, joined_ranks
from cocomix.data.token_dataset import TokenDataset
from cocomix.labels.live import identify_sae
from cocomix.training.batches import Batches
from cocomix.training.config import TrainConfig, flat
from cocomix.training.students import settled
from cocomix.training.trackers import require_trackers
from cocomix.training.trainer import Trainer


def train(config: TrainConfig) -> artifacts.Manifest:
    """Train a model, continue an interrupted run, or recognise a finished one; in one process or under `torchrun`.

    The folder holds the model as `save_pretrained` writes it (a plain Hugging Face decoder if the mixer is `none`),
    its tokenizer, and `metrics.jsonl`.

    Raises:
        CocomixError: an input or a setting is wrong, the folder belongs to another run, or the loss is not finite.
        Stopped: Ctrl-C or SIGTERM, after a checkpoint.
    """
    config.require_whole()
    require_trackers(config.trackers)
    device = this_device(config.parallel.device)
    with joined_ranks(device) as ranks, contextlib.ExitStack() as stack:
        _check_shares(config, ranks)
        typed, config = config, settled(config)
        config = _with_precision(config, ranks, device)
        shown = dataclasses.replace(config.student, pretrained=typed.student.pretrained)
        options = flat(dataclasses.replace(config, student=shown))
        if config.teacher is not None:
            require_known_place("teacher", config.teacher)
            config = dataclasses.replace(config, teacher=local_model(config.teacher))
        data = TokenDataset(config.data, "train")
        opened = [(objective.open(config, data), objective.end) for objective in config.objectives]
        batches = Batches(data, [dataclasses.replace(part, end=end) for part, end in opened if part is not None])
        settings = _fingerprinted_settings(config, batches)
        begun = artifacts.begin(config.output, TRAINING_RUN, settings, overwrite=config.overwrite, config=options)
        finished = ranks.on_first_rank(lambda: stack.enter_context(begun))
        if finished:
            if ranks.is_first:
                say(f"{config.output}: the training run is already finished")
                clear_checkpoints(config.output)  # in case the earlier process ended right before this
            return finished
        if ranks.is_first:
            num_windows, length = settings["num_windows"], data.context_length
            passes, windows = config.num_tokens / (num_windows * length), counted(num_windows, "window")
            say(
                f"{format_count(config.num_tokens)} tokens (--num-tokens), {passes:.2g} times {windows} of {length} tokens"
            )
        return Trainer(config, batches, settings, ranks, device).finish()


def _with_precision(config: TrainConfig, ranks: Ranks, device: torch.device) -> TrainConfig:
    """The configuration with the precision that every rank takes in place of `auto`."""

    def size() -> tuple[int, int]:
        num_windows = config.micro_batch_size or config.batch_size // ranks.size
        return num_windows * TokenDataset(config.data, "train").context_length, config.student.hidden_size

    choice = config.parallel.precision
    precision = ranks.on_first_rank(lambda: chosen_precision(choice, device, size, config.output))
    return dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, precision=precision))


def _check_shares(config: TrainConfig, ranks: Ranks) -> None:
    """Refuse a batch that the ranks can't share equally."""
    divisor = ranks.size * (config.micro_batch_size or 1)
    if config.batch_size % divisor:
        sizes = counted(ranks.size, "process", "es")
        if config.micro_batch_size is not None:
            sizes += f" of micro_batch_size {config.micro_batch_size}"
        raise CocomixError(
            f"batch_size {config.batch_size} can't be shared equally by {sizes}; make it a multiple of {divisor}"
        )
    if config.parallel.strategy == "hsdp" and len(set(ranks.gather(ranks.num_on_node))) > 1:
        raise CocomixError("parallel.strategy hsdp needs as many processes on every node; use fsdp")


def _fingerprinted_settings(config: TrainConfig, batches: Batches) -> dict[str, Any]:
    """The settings that determine the result: options without paths, and the fingerprints of the inputs."""
    settings = config.settings()
    settings["num_windows"] = config.num_windows or batches.num_windows
    if settings["num_windows"] > batches.num_windows:
        named = " with " + " and ".join(sorted(batches.more)).replace("_", " ") if batches.more else ""
        raise CocomixError(
            f"num_windows is {config.num_windows}, but the data has only {counted(batches.num_windows, 'window')}{named}"
        )
    settings["inputs"] = {
        "teacher": artifacts.fingerprint_of_path(config.teacher) if config.teacher is not None else None,
        **_student_inputs(config),
        **batches.inputs,
    }
    return settings


def _student_inputs(config: TrainConfig) -> dict[str, str]:
    """Fingerprints of what a pretrained student starts from.

    Raises:
        CocomixError: the autoencoder belongs to another decoder or layer.
    """
    student, path = config.student, config.student.pretrained
    if path is None:
        return {}
    inputs = {"pretrained": artifacts.fingerprint_of_path(path)}
    if student.start_from_sae is not None:
        layer = student.mixer.insertion - 1
        inputs["start_from_sae"], _ = identify_sae(
            student.start_from_sae, layer, path, inputs["pretrained"], "--student.layer"
        )
    return inputs
