"""A byte-level BPE tokenizer for corpora that come without one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cocomix.base.errors import CocomixError
from cocomix.base.hub import require_known_place
from cocomix.base.remote_code import is_trusted, loading_reason
from cocomix.data.tokenizing import Encoder

END_OF_TEXT = "<|endoftext|>"
#: Beyond this much text, a small byte-level tokenizer learns nothing and takes minutes.
MAX_TOKENIZER_BYTES = 20_000_000

#: Of three scripts; a tokenizer that has bytes or a token for the unknown makes something of each.
_RARE_CHARACTERS = "☃𓀀ༀ"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer (like GPT-2's: every byte is a token, so nothing is unknown).

    Args:
        texts: training texts; their order only breaks ties.
        vocab_size: number of tokens, at least 257: the bytes and `<|endoftext|>`.

    Raises:
        CocomixError: `vocab_size` is too small.
    """
    if vocab_size < 257:
        raise CocomixError(f"vocab_size is {vocab_size}; a byte-level tokenizer needs at least 257")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def make_encoder(tokenizer: PreTrainedTokenizerFast, *, special_tokens_in_text: bool = False) -> Encoder:
    """An encoder of texts with this tokenizer, which can be sent to worker processes.

    Args:
        tokenizer: it has an end-of-sequence token.
        special_tokens_in_text: whether a special token spelled out in a text is that token, unless the tokenizer itself
            says otherwise; if not, it is text like any other.
    """
    return Encoder(
        tokenizer_json=tokenizer.backend_tokenizer.to_str(),
        splits_special_tokens=bool(tokenizer.split_special_tokens) or not special_tokens_in_text,
        eos_token_id=int(tokenizer.eos_token_id),
        dtype="uint16" if num_token_ids(tokenizer) <= 2**16 else "int32",
    )


def num_token_ids(tokenizer: PreTrainedTokenizerFast) -> int:
    """Size of a vocabulary that holds every id of the tokenizer: more than its number of tokens where ids have holes."""
    return max(map(int, tokenizer.get_vocab().values())) + 1


def leaves_out_characters(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether characters that the tokenizer does not know become nothing, as without bytes and a token for the unknown."""
    return not any(tokenizer(_RARE_CHARACTERS, add_special_tokens=False)["input_ids"])


def fingerprint_of_tokenizer(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of everything that turns text into tokens."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def same_tokens(tokenizer: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast) -> bool:
    """Whether every token of a tokenizer is the same token, made by the same merges, in another one that may have more.

    Classes, and what they add to the text, play no part: they change which tokens a text becomes, not what a token means.
    """
    return _merges(tokenizer) == _merges(other) and tokenizer.get_vocab().items() <= other.get_vocab().items()


def _merges(tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, ...]]:
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("merges", [])
    return [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]


def has_tokenizer(path: Path) -> bool:
    """Whether a model's folder, or GGUF file, includes its tokenizer."""
    return path.suffix == ".gguf" or any((path / name).exists() for name in _TOKENIZER_FILES)


def load_tokenizer(path: Path | str) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer, from a folder, a GGUF file or a Hub name.

    Raises:
        CocomixError: there is no such tokenizer.
    """
    require_known_place("tokenizer", path)
    is_gguf = Path(path).suffix == ".gguf"
    source, options = (Path(path).parent, {"gguf_file": Path(path).name}) if is_gguf else (path, {})
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=is_trusted(), **options)
    except Exception as error:  # the libraries raise a dozen types of their own for damaged files
        raise CocomixError(f"no tokenizer could be loaded from {path}: {loading_reason(error, source)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CocomixError(f"the tokenizer of {path} is not a fast one; cocomix needs its `tokenizer.json`")
    return tokenizer
