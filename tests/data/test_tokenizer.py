"""Tokenizers as people bring them: text stays text, and equal tokens are equal whatever the tokenizer's class."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cocomix import CocomixError, ConceptDataset, EvalConfig, PrepareConfig, TokenDataset, prepare
from cocomix.data.tokenizer import load_tokenizer, make_encoder, same_tokens, train_tokenizer
from cocomix.evaluation.command import _tokenizer as tokenizer_of
from cocomix.tools.generate.command import prompt_tokens
from tests.conftest import Tiny

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]


def gpt2_like() -> PreTrainedTokenizerFast:
    return train_tokenizer(["text of letters and <|endoftext|> words"] * 3, 300)


def llama_like() -> PreTrainedTokenizerFast:
    """Bytes behind merges, a mark for the space before each text, and a text that begins with a token."""
    names = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "/",
        "<",
        ">",
        *LETTERS,
        "▁a",
        "</",
        "s>",
    ]
    merges = [("▁", "a"), ("<", "/"), ("s", ">")]
    tokenizer = Tokenizer(
        models.BPE(
            {name: i for i, name in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names[:3]])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram() -> PreTrainedTokenizerFast:
    """Pieces by their score; control pieces are among them, with the best one."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in [*LETTERS, "<", "/", ">"])]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("make", [gpt2_like, llama_like, unigram])
def test_a_special_token_spelled_out_is_text(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer = make()
    end = tokenizer.eos_token
    texts = [
        "text of letters",
        f"text {end}{end} of{end}letters",
        end,
        f"{end}text",
        f"a {tokenizer.bos_token or end} a {end}",
    ]
    plain = [ids[:-1] for ids in make_encoder(tokenizer)(texts)["input_ids"].to_pylist()]
    assert not any(special in ids for ids in plain for special in tokenizer.all_special_ids)
    for text, ids in zip(texts, plain, strict=True):
        assert tokenizer.decode(ids).strip() == text
    marked = make_encoder(tokenizer, special_tokens_in_text=True)(texts)["input_ids"].to_pylist()
    assert [ids.count(tokenizer.eos_token_id) for ids in marked] == [1, 4, 2, 2, 2 if make is llama_like else 3]
    # Without such a text nothing changes.
    assert marked[0][:-1] == plain[0] == tokenizer(texts[0], add_special_tokens=False)["input_ids"]


def test_a_prompt_may_hold_special_tokens() -> None:
    tokenizer = llama_like()
    assert prompt_tokens(tokenizer, "a</s>").tolist() == [[1, tokenizer.convert_tokens_to_ids("▁a"), 2]]
    silent = PreTrainedTokenizerFast(tokenizer_object=unigram().backend_tokenizer)
    assert prompt_tokens(silent, "</s>").tolist() == [[1]]
    with pytest.raises(CocomixError, match="the prompt is empty"):
        prompt_tokens(silent, "")


def test_equal_tokens_behind_another_class(tiny: Tiny, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny.data / "tokenizer")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["post_processor"] = None
    state["model"]["merges"] = [" ".join(merge) for merge in state["model"]["merges"]]  # as older versions write them
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token=tokenizer.eos_token, pad_token="<pad>"
    )
    other.save_pretrained(tmp_path)
    data = TokenDataset(tiny.data)
    assert same_tokens(tokenizer, load_tokenizer(tmp_path))
    data.check_model(tmp_path, data.vocab_size)
    # Labels of the one dataset belong to the other, whose windows are equal.
    settings = {"tokenizer": str(tmp_path), "context_length": 16, "validation_fraction": 0.2}
    made = prepare(PrepareConfig(tmp_path / "data", (tiny.corpus,), **settings))  # type: ignore[arg-type]
    assert made.fingerprint != data.fingerprint
    ConceptDataset(tiny.concepts, TokenDataset(tmp_path / "data"))
    # The other way round, the data has a token that the model does not know.
    assert not same_tokens(load_tokenizer(tmp_path), tokenizer)
    for change in ("merges", "vocab"):
        changed = json.loads(json.dumps(state))
        if change == "merges":
            changed["model"]["merges"].reverse()
        else:
            vocab = changed["model"]["vocab"]
            vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
        PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(changed)), eos_token=tokenizer.eos_token
        ).save_pretrained(tmp_path)
        with pytest.raises(CocomixError, match="different tokenizers"):
            data.check_model(tmp_path, data.vocab_size)


def test_a_tokenizer_that_does_not_say_what_ends_a_text(tiny: Tiny, tmp_path: Path) -> None:
    backend = load_tokenizer(tiny.data / "tokenizer").backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="a").save_pretrained(tmp_path / "silent")
    settings = {"text": (tiny.corpus,), "tokenizer": str(tmp_path / "silent"), "context_length": 16}
    with pytest.raises(CocomixError, match=r"silent .*--eos-token"):
        prepare(PrepareConfig(tmp_path / "data", **settings))  # type: ignore[arg-type]
    with pytest.raises(CocomixError, match=r"--eos-token: .*silent .*'<none>'"):
        prepare(PrepareConfig(tmp_path / "data", eos_token="<none>", **settings))  # type: ignore[arg-type]
    with pytest.raises(CocomixError, match=r"--eos-token .*--tokenizer"):
        PrepareConfig(tmp_path / "data", eos_token="<|endoftext|>")
    assert not (tmp_path / "data").exists()
    made = prepare(PrepareConfig(tmp_path / "data", eos_token="<|endoftext|>", **settings))  # type: ignore[arg-type]
    assert made.settings["eos_token"] == "<|endoftext|>"
    data, usual = TokenDataset(tmp_path / "data"), TokenDataset(tiny.data)
    assert data.eos_token_id == data.tokenizer().eos_token_id == usual.eos_token_id
    # The model's tokenizer still does not say it, and fits; benchmarks take the data's.
    data.check_model(tmp_path / "silent", data.vocab_size)
    evaluation = EvalConfig(tmp_path / "silent", tmp_path, data=tmp_path / "data")
    assert tokenizer_of(evaluation, data).eos_token_id == data.eos_token_id
    with pytest.raises(CocomixError, match=r"silent .*--data"):
        tokenizer_of(evaluation, None)


@pytest.mark.parametrize(("end", "dtype"), [(40, "uint16"), (70_000, "int32")])
def test_ids_with_holes(tiny: Tiny, tmp_path: Path, end: int, dtype: str) -> None:
    vocab = {letter: i for i, letter in enumerate([*LETTERS, " "])} | {"</s>": end}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.add_special_tokens(["</s>"])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(tmp_path / "holes")
    config = PrepareConfig(tmp_path / "data", text=(tiny.corpus,), tokenizer=str(tmp_path / "holes"), context_length=16)
    assert prepare(config).facts["vocab_size"] == end + 1
    assert make_encoder(load_tokenizer(tmp_path / "holes")).dtype == dtype


def test_characters_that_become_nothing_are_said(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate([*LETTERS, "</s>"])}, []))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(tmp_path / "letters")
    for name, is_said in (("letters", True), ("usual", False)):
        if name == "usual":
            gpt2_like().save_pretrained(tmp_path / name)
        prepare(
            PrepareConfig(tmp_path / f"{name} data", (tiny.corpus,), tokenizer=str(tmp_path / name), context_length=16)
        )
        assert ("left out" in capsys.readouterr().err) == is_said


def test_another_end_of_sequence_is_not_taken_for_the_same(tiny: Tiny, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny.data / "tokenizer")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    settings = {"output": tmp_path / "data", "text": (tiny.corpus,), "tokenizer": str(tmp_path / "tokenizer")}
    for number, token in enumerate(("<|endoftext|>", "<end>")):
        tokenizer.eos_token = token
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        if number:
            with pytest.raises(CocomixError, match=r"end-of-sequence.*--overwrite"):
                prepare(PrepareConfig(context_length=16, **settings))  # type: ignore[arg-type]
        made = prepare(PrepareConfig(context_length=16, overwrite=bool(number), **settings))  # type: ignore[arg-type]
        assert made.facts["eos_token_id"] == tokenizer.eos_token_id
