"""`train`: what a training run depends on, and whether its folder is new, unfinished, finished or another's."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from cocomix.base import artifacts
from cocomix.base.checkpoints import Checkpoints
from cocomix.base.devices import this_device
from cocomix.base.errors import CocomixError
from cocomix.base.progress import say
from cocomix.base.ranks import Ranks, joined_ranks
from cocomix.data.token_dataset import TokenDataset
from cocomix.modeling.loading import local_model
from cocomix.objectives.base import regression_layer
from cocomix.training.batches import Batches, distillation_targets
from cocomix.training.config import APPROXIMATIONS, TrainConfig
from cocomix.training.labels import concept_labels
from cocomix.training.run import Run
from cocomix.training.trackers import require_trackers

KIND = "training-run"


def train(config: TrainConfig) -> artifacts.Manifest:
    """Train a model, continue an interrupted run, or recognise a finished one; alone or under `torchrun`.

    The folder holds the model as `save_pretrained` writes it (a plain Hugging Face decoder where the mixer is `none`),
    its tokenizer, and `metrics.jsonl`.

    Raises:
        CocomixError: an input or a setting is wrong, the folder is another run's, or the loss is not finite.
        Stopped: Ctrl-C or SIGTERM, after a checkpoint.
    """
    require_trackers(config.trackers)
    device = this_device(config.parallel.device)
    with joined_ranks(device) as ranks, contextlib.ExitStack() as stack:
        _check_shares(config, ranks)
        options = dataclasses.asdict(config)
        if config.teacher is not None:
            config = dataclasses.replace(config, teacher=local_model(config.teacher))
            if config.teacher is not None and not config.teacher.exists():
                raise CocomixError(f"teacher {config.teacher} does not exist; give a folder, a GGUF file or a Hub name")
        data = TokenDataset(config.data, "train")
        batches = Batches(data, concept_labels(config, data), distillation_targets(config, data))
        settings = _settings_of(config, batches)
        begun = artifacts.begin(config.output, KIND, settings, overwrite=config.overwrite, config=options)
        finished = ranks.from_first(lambda: stack.enter_context(begun))
        if finished:
            if ranks.is_first:
                say(f"{config.output}: the training run is finished already")
                Checkpoints(config.output).clear()  # in case the former process ended right before it
            return finished
        return Run(config, batches, settings, ranks, device).finish()


def _check_shares(config: TrainConfig, ranks: Ranks) -> None:
    """Refuse a batch that the ranks can't share equally."""
    wanted = ranks.size * (config.micro_batch_size or 1)
    if config.batch_size % wanted:
        sizes = f"{ranks.size} processes"
        if config.micro_batch_size is not None:
            sizes += f" of micro_batch_size {config.micro_batch_size}"
        raise CocomixError(
            f"batch_size {config.batch_size} can't be shared equally by {sizes}; make it a multiple of {wanted}"
        )


def _settings_of(config: TrainConfig, batches: Batches) -> dict[str, Any]:
    """What determines the result: options without paths, and the fingerprints of the inputs."""
    settings = dataclasses.asdict(config)
    for name in ("output", "overwrite", "checkpoint_every_steps", "keep", "micro_batch_size", "trackers"):
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
    for name, exact in APPROXIMATIONS.items():  # a run without them is what it was before there were any
        if getattr(config.student, name) == exact:
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
