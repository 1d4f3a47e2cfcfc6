"""Rows of prepared datasets, streamed from a folder, the Hub, object storage or any web server.

Windows and their labels are aligned by row, so both are read in order, side by side. The manifests are compared, but the
shards' checksums are not verified, which would need the whole file first.
"""

from __future__ import annotations

import json
from typing import Any, get_args

import datasets
import fsspec
import numpy as np

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.base.kinds import CONCEPT_DATASET, TOKEN_DATASET
from cocomix.data import IGNORED_LABEL, token_dataset
from cocomix.data.shards import shard_name
from cocomix.data.token_dataset import Split


def stream_concepts(tokens: str, concepts: str | None = None, *, split: Split = "train") -> datasets.IterableDataset:
    """Stream the windows of a token dataset, with their concept labels.

    Each row has `input_ids` and `document_ids` (T integers each) and, with `concepts`, `labels` (T lists of A integers, -100
    in place of a missing one) and, if they were stored, `scores` (same shape). `.with_format("torch")`, `.batch(8)`,
    `.shuffle(buffer_size=...)` and `datasets.distributed.split_dataset_by_node` work as usual.

    Args:
        tokens: path of `prepare`'s folder, or a URL that `fsspec` opens, such as `hf://datasets/me/corpus`,
            `s3://bucket/corpus` or `https://host/corpus`.
        concepts: path or URL of `extract`'s folder; only labelled windows are streamed then.
        split: `train` or `validation`; only `train` has labels.

    Raises:
        CocomixError: a manifest can't be read, or the labels belong to other windows.
    """
    if split not in get_args(Split):
        raise CocomixError(f"split is {split!r}; it must be one of {', '.join(get_args(Split))}")
    manifest = _manifest(tokens, TOKEN_DATASET)
    counts = manifest["facts"]["splits"][split]
    rows = _rows(f"{tokens}/{split}", counts["num_shards"])
    if concepts is None:
        return rows
    if split != "train":
        raise CocomixError(f"split is {split!r}, but only training windows have labels; leave out concepts")
    labelled = _manifest(concepts, CONCEPT_DATASET)
    difference = token_dataset.difference(token_dataset.fingerprint_parts(manifest), labelled["settings"]["data"])
    if difference is not None:
        raise CocomixError(
            f"the labels in {concepts} belong to another token dataset than {tokens} (the {difference} differs)"
        )
    settings, facts = labelled["settings"], labelled["facts"]
    features = {"labels": datasets.List(datasets.List(datasets.Value("int64")))}
    if settings["scores"]:
        features["scores"] = datasets.List(datasets.List(datasets.Value("float32")))
    labels = _rows(concepts, facts["num_shards"]).map(
        _unpack,
        fn_kwargs={"num_labels": settings["attribution"]["num_labels"], "num_concepts": facts["num_concepts"]},
        features=datasets.Features(features),
    )
    return datasets.concatenate_datasets([rows.take(settings["num_windows"]), labels], axis=1)


def _rows(url: str, num_shards: int) -> datasets.IterableDataset:
    files = [f"{url}/{shard_name(index)}" for index in range(num_shards)]
    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)


def _unpack(row: dict[str, Any], num_labels: int, num_concepts: int) -> dict[str, Any]:
    """Flat stored labels, and scores, as T lists of A."""
    unpacked = {name: np.asarray(values).reshape(-1, num_labels) for name, values in row.items()}
    labels = unpacked["labels"].astype(np.int64)
    unpacked["labels"] = np.where(labels == num_concepts, IGNORED_LABEL, labels)
    return {name: values.tolist() for name, values in unpacked.items()}


def _manifest(url: str, kind: str) -> dict[str, Any]:
    """The manifest of a local or remote folder."""
    address = f"{url}/{artifacts.MANIFEST_NAME}"
    try:
        with fsspec.open(address, "rt", encoding="utf-8") as file:
            manifest: dict[str, Any] = json.load(file)
    except (OSError, ValueError, ImportError) as error:
        raise CocomixError(f"{address} can't be read ({error}); expected a finished {kind} made by cocomix") from error
    if manifest.get("kind") != kind:
        raise CocomixError(f"{url} holds a {manifest.get('kind')}, not a {kind}")
    return manifest
