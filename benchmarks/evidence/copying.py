"""What students copy: their loss on tokens that repeat a pair of their window, and on all others.

A token repeats a pair if it and the token before it stand together earlier in the window. A decoder that has learned to
copy (by induction heads, Olsson et al., arXiv 2209.11895) predicts such tokens far better than one that has not.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from benchmarks.common import losses, table
from benchmarks.evidence import cells as cells_module
from benchmarks.evidence.cells import parse_cell, stored_cells
from benchmarks.evidence.corpora import CORPORA, Places, text_option
from benchmarks.evidence.run import WEIGHTS_NAME, folders_of, inputs_of
from benchmarks.evidence.sizes import REGIMES
from benchmarks.evidence.tables import Part
from cocomix import TokenDataset, load_causal_lm
from cocomix.base.artifacts import read_json, sha256_of_file, write_json
from cocomix.base.progress import say
from cocomix.modeling.losses import next_token_losses

#: Evenly spaced, of the validation split.
NUM_WINDOWS = 512
BATCH_SIZE = 16
#: Losses, as the page names them.
KINDS = {"repeating": "loss on repeating tokens", "other": "on all others"}


def result_file(size: str, corpus: str) -> Path:
    return cells_module.RESULTS / size / corpus / "copying.json"


def read_students(part: Part, places: Places) -> None:
    """Measure the stored runs of whole length whose weights are in the work folder, and their teachers; what was measured
    before stays.
    """
    for corpus in dict(part.comparisons()):
        found: dict[str, Any] = {}
        for cell in stored_cells(part.size):
            if cell.corpus != corpus or cell.percent != 100 or not part.keep([cell.row]):
                continue
            inputs = inputs_of(cell, places)
            student, _ = folders_of(cell, inputs)
            weights, teacher = student / WEIGHTS_NAME, f"{cell.teacher} teacher"
            if weights.exists() and sha256_of_file(weights) == (cell.result() or {})["weights"]:
                say(cell.name)
                found[cell.name] = split_loss(student, inputs.data)
                if cell.teacher != "none" and teacher not in found:
                    found[teacher] = split_loss(inputs.teacher, inputs.data)
        if not found:
            say(
                f"{corpus}: no weights of a stored run are in {places.work}; run it again there with --cell NAME --again"
            )
            continue
        file = result_file(part.size, corpus)
        stored = read_json(file)["losses"] if file.exists() else {}
        command = f"python -m benchmarks.evidence --copying --size {part.size} --corpus {corpus}{text_option(corpus)}"
        write_json(file, {"command": command, "losses": dict(sorted((stored | found).items()))})


@torch.no_grad()
def split_loss(model_path: Path, data: Path) -> dict[str, float]:
    """Mean losses, nats a token, and the share of repeating tokens."""
    model, dataset = load_causal_lm(model_path), TokenDataset(data, "validation")
    found, repeating = [], []
    for windows in dataset.batches(BATCH_SIZE, NUM_WINDOWS):
        logits = model(**windows.inputs(), use_cache=False).logits
        found.append(next_token_losses(logits.float(), windows.input_ids).flatten())
        repeating.append(repeats(windows.input_ids)[:, 1:].flatten())
    loss, repeated = torch.cat(found).double(), torch.cat(repeating)
    return {
        "repeating": float(loss[repeated].mean()),
        "other": float(loss[~repeated].mean()),
        "share": float(repeated.double().mean()),
    }


def repeats(tokens: Int64[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Whether a token and the one before it stand together earlier in the window; the first two never do."""
    pairs = torch.stack([tokens[:, :-1], tokens[:, 1:]], -1)
    equal = (pairs[:, :, None] == pairs[:, None, :]).all(-1)  # [B, T - 1, T - 1]
    found = equal.tril(-1).any(-1)
    return torch.nn.functional.pad(found, (1, 0))


def copying_table(size: str) -> str:
    """Losses by seed of the teachers, and of every row at each weight and rate that was measured."""
    body = []
    for corpus in REGIMES[size].corpora:
        file = result_file(size, corpus)
        stored: dict[str, Any] = read_json(file)["losses"] if file.exists() else {}
        found = defaultdict[tuple[str, str], list[Any]](list)
        for name, run in stored.items():
            found[label(name)].append(run)
        for (what, rate), runs in found.items():
            shown = (losses([run[kind] for run in runs]) for kind in KINDS)
            body.append([CORPORA[corpus], what, rate, *shown, f"{runs[0]['share']:.0%}"])
    return table(["corpus", "row, weight", "learning rate", *KINDS.values(), "repeating"], body) if body else ""


def label(name: str) -> tuple[str, str]:
    """Row and weight, and rate, of a measured model."""
    if "/" not in name:
        return name, ""
    cell = parse_cell(name)
    return f"`{cell.row}`" + (f", {cell.setting}" if cell.setting else ""), f"{cell.rate:g}"
