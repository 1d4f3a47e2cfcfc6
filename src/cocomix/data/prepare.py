"""Text to token dataset: read, tokenize, split by document, shuffle, cut into windows.

Documents are tokenized as they are read and stored in a work folder, so memory does not grow with the text. Then each goes
to training or validation by a hash of its text, and both splits are shuffled as a whole: documents are sorted by their
hashes, then permuted by the seed. So the result depends on the set of documents but not on how they are read, and every
prefix of a split is a fair sample of it. Each document ends with the end-of-sequence token; documents are joined and cut
into windows of `context_length`, and the last, incomplete window is dropped. Concept labels are computed for exactly these
windows, so that teacher and student see the same context.

DIR/.work/SETTINGS/tokenizer/         the tokenizer, given or trained
DIR/.work/SETTINGS/checksums.json     SHA-256 of its files
DIR/.work/SETTINGS/text/              `DocumentPile` of the text
DIR/.work/SETTINGS/validation_text/   `DocumentPile` of the validation text, if given
DIR/.work/SETTINGS/copy/              copy of the text, if it is not streamed
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerFast

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.base.formats import counted
from cocomix.base.kinds import TOKEN_DATASET
from cocomix.base.progress import ProgressLine, say
from cocomix.data.config import PrepareConfig
from cocomix.data.document_pile import DocumentPile
from cocomix.data.documents import cut_if_few, first_bytes, is_held_out, text_digest
from cocomix.data.sources import LEFT_OUT, Files, HubDataset, LeftOut, Source
from cocomix.data.text_files import FoundFiles, find_files, standard_library_files
from cocomix.data.token_dataset import TOKENIZER_FOLDER, Split
from cocomix.data.tokenizer import (
    MAX_TOKENIZER_BYTES,
    fingerprint_of_tokenizer,
    leaves_out_characters,
    load_tokenizer,
    make_encoder,
    num_token_ids,
    train_tokenizer,
)
from cocomix.data.tokenizing import batch_texts, encode_in_order
from cocomix.data.windows import WindowWriter

WORK_FOLDER = ".work"
SPLITS: tuple[Split, Split] = ("train", "validation")
DOCUMENTS_PER_READ = 256


def prepare(config: PrepareConfig) -> artifacts.Manifest:
    """Make the token dataset, continue where an interrupted process stopped, or recognise that it already exists.

    Raises:
        CocomixError: the text can't be read or is too short, or the output folder holds something else.
    """
    source = _make_source(config)
    validation_source = None if config.validation_text is None else _files(config.validation_text, config)
    tokenizer = _given_tokenizer(config)
    settings = _fingerprinted_settings(config, source, validation_source, tokenizer)
    with artifacts.begin(config.output, TOKEN_DATASET, settings, overwrite=config.overwrite) as finished:
        if finished:
            say(f"{config.output}: the token dataset already exists")
            # The process that finished it may have ended before cleaning up.
            shutil.rmtree(config.output / WORK_FOLDER, ignore_errors=True)
            if tokenizer is not None and finished.facts["eos_token_id"] != tokenizer.eos_token_id:
                raise CocomixError(
                    f"{config.output} was made with another end-of-sequence token; choose another --output, or --overwrite "
                    "to replace it"
                )
            return finished
        work = _work_folder(config.output, settings)
        try:
            facts = _make(config, source, validation_source, tokenizer, work)
        except Exception as error:  # keep only what another run with the same settings can continue
            for name in (TOKENIZER_FOLDER, *SPLITS):
                shutil.rmtree(config.output / name, ignore_errors=True)
            text = DocumentPile(work / "text")
            if text.num_documents == 0 or (text.is_complete and isinstance(error, CocomixError)):
                shutil.rmtree(config.output / WORK_FOLDER)
            raise
        manifest = artifacts.finish(config.output, facts)
        made = counted(facts["splits"]["train"]["num_windows"], "training window")
        say(f"{config.output}: {made} of {config.context_length} tokens (--context-length)")
        shutil.rmtree(config.output / WORK_FOLDER)
        return manifest


def _make_source(config: PrepareConfig) -> Source:
    if config.dataset is not None:
        return HubDataset(config.dataset, config.dataset_config, config.split, config.text_field)
    if config.text is None:
        return Files(FoundFiles(standard_library_files(), 0), config.text_field, "the standard library")
    if not config.text:
        raise CocomixError("--text names no file or folder; leave it out for the standard library")
    return _files(config.text, config)


def _files(paths: tuple[Path, ...], config: PrepareConfig) -> Files:
    name = ", ".join(map(str, paths))
    return Files(find_files(paths, config.suffix), config.text_field, name, skips_errors=config.on_error == "skip")


def _given_tokenizer(config: PrepareConfig) -> PreTrainedTokenizerFast | None:
    """Load the tokenizer that `--tokenizer` names, if any; it has an end-of-sequence token."""
    if config.tokenizer is None:
        return None
    try:
        path = Path(config.tokenizer)  # of a run, or in a token dataset
        artifacts.check(path.parent if path.name == TOKENIZER_FOLDER else path)
        tokenizer = load_tokenizer(config.tokenizer)
    except CocomixError as error:
        raise CocomixError(f"--tokenizer: {error}") from error
    if config.eos_token is not None:
        if config.eos_token not in tokenizer.get_vocab():
            raise CocomixError(f"--eos-token: {config.tokenizer} has no token {config.eos_token!r}")
        tokenizer.add_special_tokens({"eos_token": config.eos_token})
    if tokenizer.eos_token_id is None:
        raise CocomixError(
            f"the tokenizer of {config.tokenizer} does not say which token ends a document; choose one of its tokens with "
            f"--eos-token (its special tokens: {', '.join(tokenizer.all_special_tokens) or 'none'})"
        )
    if leaves_out_characters(tokenizer):
        say(f"the tokenizer of {config.tokenizer} has no token for what it does not know: such characters are left out")
    return tokenizer


def _fingerprinted_settings(
    config: PrepareConfig,
    source: Source,
    validation_source: Source | None,
    tokenizer: PreTrainedTokenizerFast | None,
) -> dict[str, Any]:
    """The settings that determine the content."""
    settings: dict[str, Any] = {
        "text": source.fingerprint(),
        "tokenizer": None if tokenizer is None else fingerprint_of_tokenizer(tokenizer),
        **config.settings(),
    }
    if validation_source is not None:
        settings["validation_text"] = validation_source.fingerprint()
    return settings


def _work_folder(output: Path, settings: dict[str, Any]) -> Path:
    """The work folder for these settings and library versions, possibly left by an interrupted process; removes others."""
    name = artifacts.fingerprint_of_json({"settings": settings, "versions": artifacts.recorded_versions()})
    work = output / WORK_FOLDER / name[:16]
    work.mkdir(parents=True, exist_ok=True)
    for other in work.parent.iterdir():
        if other != work:
            shutil.rmtree(other)
    return work


def _make(
    config: PrepareConfig,
    source: Source,
    validation_source: Source | None,
    tokenizer: PreTrainedTokenizerFast | None,
    work: Path,
) -> dict[str, Any]:
    """Write tokenizer and shards into a folder that was begun; returns the facts for its manifest."""
    saved = _saved_tokenizer(config, source, tokenizer, work)
    text, left_out = DocumentPile(work / "text"), LeftOut(source.num_hidden)
    _read(config, _texts(config, source, work, left_out), left_out, saved, text)
    piles = dict.fromkeys(SPLITS, text)
    if validation_source is not None:
        piles["validation"], left_out = DocumentPile(work / "validation_text"), LeftOut(validation_source.num_hidden)
        held_out = validation_source.texts(config.seed, stream=config.stream, folder=work / "copy", left_out=left_out)
        _read(config, held_out, left_out, saved, piles["validation"])
        num_shared = len(np.intersect1d(text.column("digest"), piles["validation"].column("digest")))
        if num_shared:
            raise CocomixError(
                f"--validation-text shares {counted(num_shared, 'document')} with the training text; remove what both have"
            )
    # Copied, because saving it again could give other files than an uninterrupted process.
    shutil.copytree(work / TOKENIZER_FOLDER, config.output / TOKENIZER_FOLDER, dirs_exist_ok=True)
    shuffled = {split: _shuffled(config, split, pile) for split, pile in piles.items()}
    left_out_counts = _count_left_out(set(piles.values()))
    num_duplicates = sum(count for _, count in shuffled.values())
    if num_duplicates:
        outcome = "left out" if config.drop_duplicates else "kept; --drop-duplicates leaves them out"
        say(f"exact copies of other documents: {num_duplicates:,}, {outcome}")
    return {
        "context_length": config.context_length,
        "isolate_documents": config.isolate_documents,
        "num_duplicates": num_duplicates,
        **left_out_counts,
        "vocab_size": num_token_ids(saved),
        "eos_token_id": saved.eos_token_id,
        "splits": {split: _write_split(config, split, rows) for split, (rows, _) in shuffled.items()},
    }


def _texts(config: PrepareConfig, source: Source, work: Path, left_out: LeftOut | None = None) -> Iterator[str]:
    """The documents of the text, in the order in which they are read."""
    texts = source.texts(config.seed, stream=config.stream, folder=work / "copy", left_out=left_out)
    if config.validation_text is None:
        texts = cut_if_few(texts, config.seed)
    return texts if config.max_bytes is None else first_bytes(texts, config.max_bytes)


def _count_left_out(piles: Collection[DocumentPile]) -> dict[str, int]:
    """Counts of what was left out of all the text, which are also said."""
    counts = {name: sum(pile.left_out[name] for pile in piles) for name in LEFT_OUT}
    for name, what in LEFT_OUT.items():
        if counts[name]:
            say(f"left out: {counts[name]:,} {what}")
    return counts


def _in_training(config: PrepareConfig, digests: np.ndarray) -> np.ndarray:
    """Whether each document of the text is in the training split: [documents] uint64 -> [documents] booleans."""
    if config.validation_text is not None:
        return np.ones(len(digests), bool)
    return ~is_held_out(digests, config.validation_fraction)


def _saved_tokenizer(
    config: PrepareConfig, source: Source, tokenizer: PreTrainedTokenizerFast | None, work: Path
) -> PreTrainedTokenizerFast:
    """The tokenizer, saved and reloaded: the given one, or one trained on the first training documents."""
    folder, partial = work / TOKENIZER_FOLDER, work / f"{TOKENIZER_FOLDER}.partial"
    if folder.exists() and _checksums(folder) != artifacts.read_checksums(work):
        shutil.rmtree(folder)  # damaged while it lay there
    if not folder.exists():
        if tokenizer is None:
            say(f"training a tokenizer of {config.vocab_size:,} tokens")
            texts = _texts(config, source, work)
            training = (text for text in texts if _in_training(config, np.array([text_digest(text)], np.uint64))[0])
            tokenizer = train_tokenizer(first_bytes(training, MAX_TOKENIZER_BYTES), config.vocab_size)
        tokenizer.save_pretrained(partial)
        artifacts.write_json(work / artifacts.CHECKSUMS_NAME, _checksums(partial))
        partial.rename(folder)
    return load_tokenizer(folder)


def _checksums(folder: Path) -> dict[str, str]:
    return artifacts.checksums_of(folder, (file.name for file in folder.iterdir()))


def _read(
    config: PrepareConfig,
    texts: Iterator[str],
    left_out: LeftOut,
    tokenizer: PreTrainedTokenizerFast,
    pile: DocumentPile,
) -> None:
    """Tokenize the documents that are not on the pile yet, as far as needed; `left_out` grows as the texts are taken."""
    if pile.is_complete:
        return
    num_done = pile.num_documents
    if num_done:
        say(f"continuing {config.output} after {counted(num_done, 'document')}")
    for _ in itertools.islice(texts, num_done):
        pass
    pile.left_out = left_out.counts()
    # Workers are ahead of the batches taken, so each batch remembers what had been left out at its end.
    batches, again = itertools.tee((batch, left_out.counts()) for batch in batch_texts(texts))
    encoder = make_encoder(tokenizer, special_tokens_in_text=config.special_tokens_in_text)
    with ProgressLine("reading and tokenizing", None, unit="bytes") as progress:
        encoded = encode_in_order(encoder, (batch for batch, _ in batches), config.num_workers)
        pairs = zip(encoded, (counts for _, counts in again), strict=False)
        pile.complete(_until_enough(config, pairs, left_out, pile, progress))
    for problem in left_out.problems:
        say(f"left out: {problem}")


def _until_enough(
    config: PrepareConfig,
    batches: Iterator[tuple[pa.RecordBatch, dict[str, int]]],
    left_out: LeftOut,
    pile: DocumentPile,
    progress: ProgressLine,
) -> Iterator[pa.RecordBatch]:
    """Batches until the pile holds `max_tokens` training tokens; keeps its count of what was left out."""
    max_tokens = config.max_tokens
    num_documents, num_tokens = pile.num_documents, 0
    if num_documents and max_tokens is not None:
        num_tokens = int(pile.column("num_tokens")[_in_training(config, pile.column("digest"))].sum())
    while max_tokens is None or num_tokens < max_tokens:
        pair = next(batches, None)
        if pair is None:
            pile.left_out = left_out.counts()
            return
        batch, pile.left_out = pair
        yield batch
        lengths, digests = batch["num_tokens"].to_numpy(), batch["digest"].to_numpy()
        num_tokens += int(lengths[_in_training(config, digests)].sum())
        num_documents += len(batch)
        progress.advance(int(batch["num_bytes"].to_numpy().sum()), documents=num_documents)


def _shuffled(config: PrepareConfig, split: Split, pile: DocumentPile) -> tuple[Any, int]:
    """Documents of a split in their final order, as a `datasets.Dataset`, and the number that are copies of another."""
    digests = pile.column("digest")
    chosen = np.arange(len(digests))
    if config.validation_text is None:
        chosen = np.flatnonzero(_in_training(config, digests) == (split == "train"))
    chosen = chosen[np.argsort(digests[chosen], kind="stable")]
    is_copy = np.zeros(len(chosen), bool)
    is_copy[1:] = digests[chosen[1:]] == digests[chosen[:-1]]
    if config.drop_duplicates:
        chosen = chosen[~is_copy]
    rows = pile.rows().select(chosen, keep_in_memory=True).shuffle(seed=config.seed, keep_in_memory=True)
    return rows, int(is_copy.sum())


def _write_split(config: PrepareConfig, split: Split, rows: Any) -> dict[str, int]:
    """Write the shards of a split; returns its counts.

    Args:
        config: settings of the dataset.
        split: `train` or `validation`.
        rows: `datasets.Dataset` of the split's documents, in order.
    """
    T = config.context_length
    max_windows = config.max_tokens // T if split == "train" and config.max_tokens is not None else None
    writer = WindowWriter(config.output / split, T, max_windows)
    with ProgressLine(f"writing the {split} windows", len(rows), unit="documents") as progress:
        for table in rows.with_format("arrow").iter(batch_size=DOCUMENTS_PER_READ):
            ids = np.concatenate([chunk.flatten().to_numpy() for chunk in table["input_ids"].chunks])
            writer.add(ids, table["num_tokens"].to_numpy(), int(table["num_bytes"].to_numpy().sum()))
            progress.advance(len(table))
            if writer.is_full:
                break
    return writer.finish()
