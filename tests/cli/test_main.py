"""The command line: free to import, complete help, one sentence and a non-zero exit for every mistake."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from safetensors import SafetensorError

import cocomix
from cocomix.cli import main as cli
from cocomix.cli.main import COMMANDS, main
from cocomix.cli.usage import options_of
from tests.cli.test_mistakes import config_class
from tests.conftest import Tiny

#: Every page of help, and a mistyped command.
HELP = """
from cocomix.cli.main import COMMANDS, main
main(['trian'])
for name in COMMANDS:
    try:
        main([name, '--help-all'])
    except SystemExit:
        pass
"""


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import cocomix", ("torch", "transformers", "datasets", "numpy")),
        ("from cocomix.cli.main import main; main(['--help'])", ("torch", "transformers", "datasets", "numpy")),
        (HELP, ("torch", "transformers", "datasets", "matplotlib")),
    ],
)
def test_importing_and_help_load_no_torch(code: str, heavy: tuple[str, ...]) -> None:
    check = f"{code}\nimport sys; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_every_public_name_exists_and_is_documented() -> None:
    for name in cocomix.__all__:
        assert getattr(cocomix, name).__doc__, name
    assert set(cocomix.__all__) <= set(dir(cocomix))
    with pytest.raises(AttributeError, match="nothing"):
        cocomix.nothing  # noqa: B018


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_lists_described_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    writes_a_folder = command not in ("recipes", "plan", "bench", "generate", "studio")
    assert not writes_a_folder or ("--output" in text and "--overwrite" in text)
    assert f"\n  cocomix {command}" in text  # an example
    assert not re.search(r"None|\{|\(default:|REQUIRED", text)
    short = len(re.findall(r"^  (?:--|RUN)", text, re.MULTILINE))
    assert 1 <= short <= 18
    with pytest.raises(SystemExit):
        main([command, "--help-all"])
    whole = capsys.readouterr().out
    assert not re.search(r"None\b|\{|\(default:|REQUIRED", whole)
    config = config_class(command)
    every = list(options_of(config() if command in ("train", "plan") else config))
    assert all(option.names[0] in whole and option.text for option in every)
    named = {field.name for field in dataclasses.fields(config)}
    assert named >= {*config.common}


def test_overview_version_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(name in overview for name in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("cocomix ")
    assert main([]) == 2
    assert main(["trian"]) == 2
    assert "there is no command 'trian'; perhaps train" in capsys.readouterr().err
    assert sorted(itertools.chain(*cli.GROUPS.values())) == sorted(COMMANDS)


def test_a_command_runs_and_prints_its_result(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "eval",
        "--model",
        str(tiny.teacher),
        "--data",
        str(tiny.data),
        "--output",
        str(tmp_path),
        "--max-windows",
        "4",
    ]
    assert main(argv) == 0
    assert re.search(r"^num tokens +60$", capsys.readouterr().out, re.MULTILINE)
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_tokens"] == 60
    output = str(tmp_path / "data")
    assert main(["prepare", "--output", output, "--text", str(tiny.corpus), "--vocab-size", "300"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == output
    assert said.err.splitlines()[-1] == f"next  cocomix train --data {output} --output {tmp_path / 'teacher'}"


def test_commands_say_the_sizes_that_nobody_gave(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = str(tmp_path / "data"), str(tmp_path / "run")
    assert main(["prepare", "--output", data, "--text", str(tiny.corpus), "--vocab-size", "300"]) == 0
    assert re.search(r"data: \d+ training windows of 128 tokens \(--context-length\)", capsys.readouterr().err)
    tiny_student = ["--student.hidden-size", "16", "--student.num-layers", "2", "--student.num-heads", "2"]
    data, labels = str(tiny.data), str(tiny.concepts)
    assert (
        main(["train", "--data", data, "--labels", labels, "--output", run, "--num-tokens", "2048", *tiny_student]) == 0
    )
    said = capsys.readouterr().err
    windows = cocomix.TokenDataset(tiny.data).num_windows
    assert f"2.05k tokens (--num-tokens), {2048 / windows / 16:.2g} times {windows:,} windows of 16 tokens" in said
    # Of stored labels only a person knows the teacher and the dictionary.
    given = ["--model", run, "--data", data, "--labels", labels, "--teacher", "TEACHER", "--sae", "SAE"]
    assert said.splitlines()[-1] == f"next  cocomix inspect {' '.join(given)} --output {tmp_path / 'inspection'}"


def test_a_reader_that_has_read_enough_is_no_failure() -> None:
    code = (
        "from cocomix.cli import main as cli; import sys; cli._call = lambda *_: ('word ' * 100_000, []); "
        "sys.exit(cli.main(['recipes']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(4) == b"word"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_nobody_reads_the_help() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "cocomix.cli.main", "train", "--help"],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_unknown_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--data", "x", "--output", "y", "--learning-rat", "1"])
    assert stop.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said == "error: there is no option --learning-rat; perhaps --optimizer.learning-rate"


def test_a_folder_of_runs_where_one_is_expected(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, folder in (("--data", tiny.data), ("--model", tiny.teacher)):
        paths = {"--data": tiny.data, "--model": tiny.teacher, "--output": tmp_path} | {option: tiny.root}
        assert main(["eval", *(str(word) for pair in paths.items() for word in pair)]) == 1
        assert f"perhaps {folder}" in capsys.readouterr().err
    assert main(["compare", str(tiny.root)]) == 1
    assert str(tiny.teacher) in capsys.readouterr().err


def caused(*errors: Exception) -> Exception:
    """The first of some errors, each raised from the next."""
    for error, cause in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[0]


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (cocomix.CocomixError("a thing is wrong"), "error: a thing is wrong", 1),
        (
            OSError(28, "No space left on device", "/full/file"),
            "error: the disk is full ([Errno 28] No space left on device: '/full/file')",
            1,
        ),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "error: the disk is full (I/O error", 1),
        (PermissionError(13, "Permission denied", "/root/x"), "error: /root/x can't be used: Permission denied", 1),
        (OSError(36, "File name too long", "xxx"), "error: xxx can't be used: File name too long", 1),
        (FileNotFoundError(2, "No such file", "/gone/x"), "error: /gone/x can't be used: No such file", 1),
        (
            caused(RuntimeError("a"), RuntimeError("b"), OSError(28, "No space left on device")),
            "error: the disk is full",
            1,
        ),
        (caused(RuntimeError("a"), cocomix.CocomixError("a thing is wrong")), "error: a thing is wrong", 1),
        (
            caused(cocomix.CocomixError("x can't be saved"), OSError(28, "No space left on device", "/full/file")),
            "error: the disk is full ([Errno 28] No space left on device: '/full/file')",
            1,
        ),
        (MemoryError("Unable to allocate 7.3 TiB"), "not enough memory (7.3 TiB were asked for)", 1),
        (caused(cocomix.CocomixError("x can't be read"), MemoryError()), "error: x can't be read", 1),
        (
            RuntimeError("[x] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes"),
            "not enough memory (4.0\u202fTB were asked for)",
            1,
        ),
        (RuntimeError("Storage size calculation overflowed with sizes=[1000]"), "too large for this machine", 1),
        (OverflowError("Python int too large to convert to C long"), "too large for this machine", 1),
        (KeyboardInterrupt(), "the same command continues", 130),
    ],
)
def test_expected_failures_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, message: str, code: int
) -> None:
    def fail(*_: object) -> str:
        raise error

    monkeypatch.setattr(cli, "_call", fail)
    assert main(["train"]) == code
    text = capsys.readouterr().err
    assert message in text
    assert "Traceback" not in text


def test_what_was_not_foreseen_is_a_sentence_with_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(*_: object) -> str:
        raise ZeroDivisionError("division by zero\nand more \udc80")

    monkeypatch.setattr(cli, "_call", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert main(["train"]) == 1
    (file,) = tmp_path.iterdir()
    assert "in fail" in file.read_text(encoding="utf-8")
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "unexpected ZeroDivisionError: division by zero;" in said
    assert str(file) in said
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert main(["train"]) == 1
    assert "Traceback" in capsys.readouterr().err
