"""The configuration of `cocomix prepare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from cocomix.base.command import CommandConfig, beside
from cocomix.base.errors import MAX_SIZE, CocomixError, require_at_least
from cocomix.base.hub import TOKENIZER_FILES, download, require_known_place


@dataclass(frozen=True)
class PrepareConfig(CommandConfig):
    """Settings that turn text into windows of tokens."""

    output: Path
    """Folder of the token dataset."""
    text: tuple[Path, ...] | None = None
    """Text, JSON, CSV and Parquet files or folders; by default the running Python's standard library."""
    validation_text: tuple[Path, ...] | None = None
    """Files or folders to use as the whole validation split, instead of a share of the text."""
    dataset: str | None = None
    """Dataset on the Hugging Face Hub, or folder or file that `datasets` reads, instead of text."""
    dataset_config: str | None = None
    """Configuration of the dataset, if it has several."""
    split: str = "train"
    """Split of the dataset to take all documents from; without streaming also a part, such as `train[:10%]`."""
    text_field: str = "text"
    """Field of a row that holds the text; one inside another is named with a dot, as in `doc.text`."""
    suffix: tuple[str, ...] | None = None
    """Endings of the files to read in a folder, such as `.py`; by default all of a known format."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do about a file or row of --text that can't be read: stop, or leave it out, count it and name it."""
    stream: bool = False
    """Stream documents, without a copy of the text on disk; the result is the same if all of the text is read."""
    num_workers: int = 1
    """Number of processes that tokenize; the result does not depend on it."""
    tokenizer: str | None = None
    """Folder or Hub name of a tokenizer; by default a byte-level BPE is trained on the training documents."""
    eos_token: str | None = None
    """Token of the given tokenizer that ends a document; by default the one it says itself."""
    special_tokens_in_text: bool = False
    """Read a special token spelled out in a document, such as `<|endoftext|>`, as that token; by default text is text."""
    vocab_size: int = 2048
    """Size of the trained tokenizer's vocabulary."""
    context_length: int = 128
    """Tokens per window."""
    validation_fraction: float = 0.05
    """Expected share of the documents held out for validation; a hash of each document's text decides."""
    isolate_documents: bool = False
    """Keep attention within documents, and restart positions in each; by default attention crosses documents within a
    window, as in the paper."""
    max_bytes: int | None = None
    """Read at most this many bytes of UTF-8, from a random sample of the documents or, with `stream`, from the first."""
    max_tokens: int | None = None
    """Make at most this many tokens of training windows, and read no more documents than that takes."""
    drop_duplicates: bool = False
    """Leave out documents that are exact copies of another; by default they are counted and kept."""
    seed: int = 0
    """Seed of the shuffle of the documents."""
    overwrite: bool = False
    """Replace what an earlier run left in the output folder."""

    example: ClassVar[str] = "cocomix prepare --text texts/ --output runs/data"
    common: ClassVar[Sequence[str]] = (
        *("output", "text", "validation_text", "dataset", "text_field", "stream", "num_workers", "tokenizer"),
        *("vocab_size", "context_length", "max_bytes", "max_tokens", "overwrite"),
    )

    def __post_init__(self) -> None:
        require_at_least(2, self, "context_length", maximum=MAX_SIZE)
        require_at_least(1, self, "max_bytes", "max_tokens")
        require_at_least(1, self, "num_workers", maximum=1024)
        if self.tokenizer is None:
            require_at_least(257, self, "vocab_size", maximum=MAX_SIZE)  # all bytes, and the end of a text
        require_at_least(0, self, "seed")
        if self.max_tokens is not None and self.max_tokens < self.context_length:
            raise CocomixError(f"max_tokens is {self.max_tokens}, less than one window of {self.context_length}")
        if self.dataset is not None and self.text is not None:
            raise CocomixError("--text and --dataset are both given; choose one source of text")
        if self.dataset is None and (self.dataset_config is not None or self.split != "train"):
            raise CocomixError("--dataset-config and --split choose a part of a dataset; give its name with --dataset")
        if self.dataset is not None and (self.suffix is not None or self.on_error != "stop"):
            raise CocomixError("--suffix and --on-error are about files; give them with --text")
        if self.eos_token is not None and self.tokenizer is None:
            raise CocomixError("--eos-token names a token of a given tokenizer; give --tokenizer too")
        if not 0.0 < self.validation_fraction < 1.0:
            raise CocomixError(f"validation_fraction is {self.validation_fraction}; it must lie between 0 and 1")

    def settings(self) -> dict[str, Any]:
        """Optional ones appear only if they are used."""
        settings: dict[str, Any] = {
            "vocab_size": self.vocab_size if self.tokenizer is None else None,
            "context_length": self.context_length,
            "validation_fraction": self.validation_fraction if self.validation_text is None else None,
            "split_rule": "hash of the text" if self.validation_text is None else None,
            "isolate_documents": self.isolate_documents,
            "seed": self.seed,
        }
        for name in ("max_bytes", "max_tokens", "drop_duplicates", "eos_token", "special_tokens_in_text"):
            if getattr(self, name):
                settings[name] = getattr(self, name)
        if self.on_error != "stop":
            settings["on_error"] = self.on_error
        # The order in which documents are read decides which are read at all, and which train the tokenizer.
        if self.stream and (self.tokenizer is None or self.max_bytes or self.max_tokens):
            settings["stream"] = True
        return settings

    def next_command(self) -> Sequence[object]:
        if self.tokenizer is not None:  # whose model can teach
            words = ("train-sae", "--teacher", self.tokenizer, "--data", self.output)
            return (*words, "--output", beside(self.output, "sae"))
        return ("train", "--data", self.output, "--output", beside(self.output, "teacher"))

    def check_files(self) -> None:
        if self.dataset is not None:
            require_known_place("dataset", self.dataset, "file")
        if self.tokenizer is not None:
            require_known_place("tokenizer", self.tokenizer)
            place = Path(self.tokenizer)
            if not place.exists():
                download(self.tokenizer, self.tokenizer, TOKENIZER_FILES)
            elif place.suffix != ".gguf" and not any(f.is_file() for name in TOKENIZER_FILES for f in place.glob(name)):
                raise CocomixError(f"{place} holds no tokenizer; --tokenizer takes a folder with a tokenizer.json")
        folders = [path for path in (*(self.text or ()), *(self.validation_text or ())) if path.is_dir()]
        if folders:
            from cocomix.data.text_files import find_files  # takes a moment to import

            find_files(folders, self.suffix)
