"""Reading text: every format, what is left out, and one sentence for what can't be read."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cocomix import CocomixError
from cocomix.data.text_files import Document, find_files, read_file, standard_library_files


def documents_of(path: Path, text_field: str = "text") -> list[Document]:
    return [document for file in find_files([path]).files for document in read_file(file, text_field)]


def errors_of(path: Path, text_field: str = "text") -> list[str]:
    return [str(document) for document in documents_of(path, text_field) if isinstance(document, CocomixError)]


def zstd(content: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as file:
        file.write(content)
    return bytes(packed.getvalue())


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
    "zstd": zstd,
}


def test_standard_library_leaves_its_tests_out() -> None:
    files = standard_library_files()
    assert {"argparse.py", "decoder.py"} <= {file.name for file in files}
    assert not any("site-packages" in file.parts or "tests" in file.parts for file in files)
    assert all(text for file in files[:50] for text in [next(read_file(file, "text"))] if file.stat().st_size)


def test_every_format_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain é")
    (tmp_path / "b.md").write_text("# mark")
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n\n"two"\n{"text": null}\n{"text": "x\\ud800y"}\n')
    pq.write_table(pa.table({"text": ["three", None, "four"], "id": [1, 2, 3]}), tmp_path / "d.parquet")
    (tmp_path / "e.bin").write_bytes(b"\xff\xfe")
    (tmp_path / "f.json").write_text('[\n{"text": "an item"}, "another", {"text": null}]')
    (tmp_path / "g.json").write_text('{\n"text": "one row"\n}')
    (tmp_path / "h.json").write_text('{"text": "lines"}\n{"text": "under another name"}\n')
    (tmp_path / "i.csv").write_text('id,text\n0,"two\nlines, and a ""comma"""\n\n1,\n')
    (tmp_path / "j.tsv").write_text("text\tid\na, b\t0\n")
    sub = tmp_path / "sub"
    sub.mkdir()
    (sub / "k.txt").write_text("five")
    assert documents_of(tmp_path) == [
        *("plain é", "# mark", "one", "two", None),
        "x?y",  # a lone surrogate has no UTF-8 form: it becomes a question mark
        *("three", None, "four", "an item", "another", None, "one row", "lines", "under another name"),
        *('two\nlines, and a "comma"', "", "a, b", "five"),
    ]


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_files_and_what_is_left_of_one_cut_short(tmp_path: Path, suffix: str) -> None:
    text = "".join(json.dumps({"body": f"é {i}"}) + "\n" for i in range(50)) + "\n"
    packed = PACKERS[suffix](b"\xef\xbb\xbf" + text.encode())
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(packed)
    assert documents_of(tmp_path / f"a.jsonl.{suffix}", "body") == [f"é {i}" for i in range(50)]
    (tmp_path / f"b.txt.{suffix}").write_bytes(PACKERS[suffix](b"") + PACKERS[suffix](b"four"))
    assert documents_of(tmp_path / f"b.txt.{suffix}") == ["four"]
    for damaged in (packed[: len(packed) // 2], packed[:-2], b"not packed at all, whatever its name says"):
        (tmp_path / f"a.jsonl.{suffix}").write_bytes(damaged)
        (message,) = errors_of(tmp_path / f"a.jsonl.{suffix}", "body")
        assert f"a.jsonl.{suffix} can't be read" in message


def test_a_field_inside_another(tmp_path: Path) -> None:
    rows = [
        {"doc": {"text": "one", "id": 1}},
        {"doc": None},
        {"doc": {"text": None}},
        {"doc.text": "as it is", "doc": 3},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.json").write_text(json.dumps(rows))
    assert documents_of(tmp_path, "doc.text") == ["one", None, None, "as it is"] * 2
    pq.write_table(pa.Table.from_pylist(rows[:3]), tmp_path / "c.parquet")
    assert documents_of(tmp_path / "c.parquet", "doc.text") == ["one", None, None]
    (message,) = errors_of(tmp_path / "c.parquet", "doc")
    assert "doc.text, doc.id" in message
    (tmp_path / "d.jsonl").write_text('{"doc": {"body": "x"}}\n{"doc": "y"}')
    assert [
        "d.jsonl, line 1" in error or "d.jsonl, line 2" in error
        for error in errors_of(tmp_path / "d.jsonl", "doc.text")
    ]


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("a.txt", b"abc\xff", ["byte 3"]),
        ("a.txt", b"abc\0", ["NUL"]),
        ("a.jsonl", b'"x"\n{oops\n"y"\n{"text": 3}', ["line 2", 'line 4: .*"text"']),
        ("a.jsonl", b'{"body": "x"}', ['line 1: .*"text".*body']),
        ("a.jsonl", b'{"text": "x"}\n"\xff"\n', ["line 2"]),
        ("a.jsonl", b'"x"\n' + b"[" * 100_000 + b"\n" + b"[" * 100_000 + b"]" * 100_000, ["line 2", "line 3"]),
        ("a.jsonl", b'"x"\n' + b"9" * 5000, ["line 2"]),
        ("a.jsonl.gz", gzip.compress(b'"x"\n\n{"body": "x"}', mtime=0), ['line 3: .*"text".*body']),
        ("a.json", b'[{"text": "x"},\n{"text": oops}]', ["line 2"]),
        ("a.json", b'["x", {"body": "x"}, 3]', ["item 2", "item 3"]),
        ("a.json", b"[" * 100_000, ["deep"]),
        ("a.json", b"9" * 5000, ["digits"]),
        ("a.csv", b'text,id\n"x\ny",1\nz\nw,2\n', ["line 4: 1 value"]),
        ("a.csv", b"text,id\nx,1\n\xff,2\n", ["line 3"]),
        ("a.csv", b'text\nx\n"never closed\n', ["line 3"]),
        ("a.csv", b"body\nx\n", ['"text".*body']),
        ("a.parquet", b"PAR1 nothing", ["read"]),
    ],
)
def test_what_cannot_be_read_is_named_and_the_line_and_the_rest_is_read(
    tmp_path: Path, name: str, content: bytes, places: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    errors = errors_of(tmp_path / name)
    assert len(errors) == len(places)
    for error, place in zip(errors, places, strict=True):
        assert re.search(f"{name}.*{place}", error), error
        assert len(error) < len(str(tmp_path)) + 200


def test_wrong_columns_missing_paths_and_empty_folders_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": [1]}), tmp_path / "b.parquet")
    first, second = errors_of(tmp_path / "a.parquet") + errors_of(tmp_path / "b.parquet")
    assert '"text"' in first
    assert "body" in first
    assert '"text" holds int' in second
    with pytest.raises(CocomixError, match="nowhere"):
        find_files([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CocomixError, match=r"empty holds no file .*\.txt.*--suffix"):
        find_files([tmp_path / "empty"])


def test_a_folder_of_sources_and_what_is_hidden_or_in_a_cache(tmp_path: Path) -> None:
    hidden = (".git/a.py", ".cache/huggingface/b.py", "__pycache__/c.py", "sub/node_modules/d.py", ".e.py", "._f.txt")
    shown = ("g.py", "sub/h.PY", "sub/i.py.gz", "j.txt")
    for name in (*hidden, *shown):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    found = find_files([tmp_path], (".py",))
    assert [str(file.relative_to(tmp_path)) for file in found.files] == ["g.py", "sub/h.PY", "sub/i.py.gz"]
    assert found.num_hidden == 5
    assert find_files([tmp_path]) == ([tmp_path / "j.txt"], 1)
    # What is named itself is meant.
    assert find_files([tmp_path / ".git", tmp_path / ".e.py"], (".py",)) == (
        [tmp_path / ".git" / "a.py", tmp_path / ".e.py"],
        0,
    )


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff")
    (tmp_path / f"{name}.jsonl").write_text('{"text": "one"}')
    (tmp_path / f"{name}.txt.zst").write_bytes(zstd(b"two"))
    pq.write_table(pa.table({"text": ["three"]}), tmp_path / "x.parquet")
    (tmp_path / "x.parquet").rename(tmp_path / f"{name}.parquet")
    (tmp_path / f"{name}.txt").write_bytes(b"\xff")
    documents = documents_of(tmp_path)
    assert [document for document in documents if isinstance(document, str)] == ["one", "three", "two"]
    assert len(errors_of(tmp_path)) == 1
