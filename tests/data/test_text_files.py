"""Reading text: every format, and one sentence for what can't be read."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cocomix import CocomixError
from cocomix.data.text_files import expand_paths, read_file, standard_library_files


def texts_of(path: Path, text_field: str = "text") -> list[str]:
    return [text for file in expand_paths([path]) for text in read_file(file, text_field)]


def test_standard_library_leaves_its_tests_out() -> None:
    files = standard_library_files()
    assert {"argparse.py", "decoder.py"} <= {file.name for file in files}
    assert not any("site-packages" in file.parts or "tests" in file.parts for file in files)
    assert all(text for file in files[:50] for text in [next(read_file(file, "text"))] if file.stat().st_size)


def test_every_format_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain é")
    (tmp_path / "b.md").write_text("# mark")
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n\n"two"\n{"text": "x\\ud800y"}\n')
    pq.write_table(pa.table({"text": ["three", None, "four"], "id": [1, 2, 3]}), tmp_path / "d.parquet")
    (tmp_path / "e.bin").write_bytes(b"\xff\xfe")
    sub = tmp_path / "sub"
    sub.mkdir()
    (sub / "f.txt").write_text("five")
    # A lone surrogate has no UTF-8 form: it becomes a question mark.
    assert texts_of(tmp_path) == ["plain é", "# mark", "one", "two", "x?y", "three", "", "four", "five"]


def test_compressed_files_and_any_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress('{"body": "é"}\n{"body": "two"}\n'.encode()))
    with pa.output_stream(str(tmp_path / "b.jsonl.zst"), compression="zstd") as file:
        file.write(b'{"body": "three"}\n')
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"four"))
    pq.write_table(pa.table({"body": ["five"]}), tmp_path / "d.parquet")
    assert texts_of(tmp_path, "body") == ["é", "two", "three", "four", "five"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"abc\xff", r"a.txt .*byte 3"),
        ("a.jsonl", b'{"text": "x"}\n{oops\n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"body": "x"}', r'a.jsonl, line 1: .*"text".*body'),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}', r'a.jsonl, line 2: .*"text"'),
        ("a.jsonl.gz", gzip.compress(b'"x"\n\n{"body": "x"}', mtime=0), r'a.jsonl.gz, line 3: .*"text".*body'),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz"),
        ("a.parquet", b"PAR1 nothing", "a.parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_the_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CocomixError, match=message):
        texts_of(tmp_path / name)


def test_wrong_columns_missing_paths_and_empty_folders_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(CocomixError, match=r'a.parquet .*"text".*body'):
        texts_of(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": [1]}), tmp_path / "b.parquet")
    with pytest.raises(CocomixError, match=r'b.parquet.*"text" holds int'):
        texts_of(tmp_path / "b.parquet")
    with pytest.raises(CocomixError, match="nowhere"):
        texts_of(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CocomixError, match=r"empty holds no file .*\.txt"):
        texts_of(tmp_path / "empty")
