"""Reading text: every format, and one sentence for what can't be read."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cocomix import CocomixError
from cocomix.data.corpus import read_documents, standard_library_documents


def test_standard_library_leaves_its_tests_out() -> None:
    documents = {document.source: document.text for document in standard_library_documents()}
    assert "argparse.py" in documents
    assert "def parse_args" in documents["argparse.py"]
    assert "json/decoder.py" in documents
    assert not any("test" in source.split("/")[:-1] or "site-packages" in source for source in documents)


def test_every_format_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain é")
    (tmp_path / "b.md").write_text("# mark")
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n\n"two"\n{"text": "  "}\n')
    pq.write_table(pa.table({"text": ["three", None, "four"], "id": [1, 2, 3]}), tmp_path / "d.parquet")
    (tmp_path / "e.bin").write_bytes(b"\xff\xfe")
    sub = tmp_path / "sub"
    sub.mkdir()
    (sub / "f.txt").write_text("five")
    documents = list(read_documents([tmp_path]))
    assert [document.text for document in documents] == ["plain é", "# mark", "one", "two", "three", "four", "five"]
    assert documents[2].source == "c.jsonl:1"


def test_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x\\ud800y"}')
    assert next(read_documents([tmp_path])).text == "x?y"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"abc\xff", r"a.txt is not UTF-8 text \(byte 3\)"),
        ("a.jsonl", b'{"text": "x"}\n{oops\n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"body": "x"}', 'a.jsonl, line 1: expected a string or an object with a "text" string'),
        ("a.parquet", b"PAR1 nothing", "a.parquet is not a readable Parquet file"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CocomixError, match=message):
        list(read_documents([tmp_path / name]))


def test_wrong_columns_missing_paths_and_empty_folders_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(CocomixError, match=r'has no column "text" \(it has body\)'):
        list(read_documents([tmp_path / "a.parquet"]))
    pq.write_table(pa.table({"text": [1]}), tmp_path / "b.parquet")
    with pytest.raises(CocomixError, match="holds int, not text"):
        list(read_documents([tmp_path / "b.parquet"]))
    with pytest.raises(CocomixError, match="nowhere does not exist"):
        list(read_documents([tmp_path / "nowhere"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CocomixError, match="holds no file ending in"):
        list(read_documents([tmp_path / "empty"]))
