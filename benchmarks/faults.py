"""Faults in every file of every kind of folder, and in every field of its JSON: what does each command that reads it say?

    python -m benchmarks.faults

A tiny pipeline makes a folder of each kind. Each of its files is flipped in a bit, cut in half, emptied, deleted and replaced
by a folder, and each of these damaged folders is given to each command that reads the kind. JSON files are overwritten, and
their fields changed, given another type and removed; these go to the commands in turn. A command runs in its own process.
It may refuse the folder in one sentence and leave nothing behind, end with the result of the undamaged folder, or with
another that says that a run is unfinished ("said"). Anything else counts against it:

    silent       it ended well, with another result
    traceback    it ended with something else than one sentence, or not at all
    left behind  it refused, but its output folder is there
"""

from __future__ import annotations

import collections
import functools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from benchmarks.common import options, store, untimed
from cocomix.base.artifacts import (
    CARD_NAME,
    CONCEPT_METADATA_NAMES,
    CONFIG_NAME,
    MANIFEST_NAME,
    SETTINGS_NAME,
    sha256_of_file,
)
from cocomix.base.kinds import METRICS_NAME, read_metrics
from cocomix.cli.main import main as cocomix
from cocomix.steering.concept_names import NAMES_NAME

SECONDS_A_COMMAND = 60
#: What a table says of a run without a manifest.
SAYS_SO = "unfinished"
MAX_FIELDS = 4  # of one JSON file; a tokenizer has hundreds
TIMES = frozenset({"train_seconds", "tokens_per_second", "seconds"})
WORDS = ["def", "return", "import", "self", "for", "in", "range", "class", "print", "value", "name", "None", "True"]
STUDENT = "--student.hidden-size 16 --student.num-layers 2 --student.num-heads 2"
CONCEPTS = f"{STUDENT} --student.mixer concept --student.num-active-concepts 4"
SHORT = "--num-tokens 512 --num-evaluations 1 --max-validation-windows 4"

#: How each folder is made, in this order; a name in braces is a folder made before.
FOLDERS = {
    "data": "prepare --text {text} --vocab-size 300 --context-length 16 --validation-fraction 0.2",
    "teacher": f"train --data {{data}} {STUDENT} {SHORT}",
    "sae": "train-sae --teacher {teacher} --data {data} --layer 0 --num-latents 32 --k 6 --num-tokens 1024 --batch-size 16 "
    "--tokens-per-update 64",
    "labels": "extract --teacher {teacher} --sae {sae} --data {data}",
    "targets": "distill-targets --teacher {teacher} --data {data} --num-samples 4",
    "model": f"train --data {{data}} --labels {{labels}} {CONCEPTS} {SHORT}",
    "scores": "eval --model {model} --data {data} --max-windows 4",
    "cards": "inspect --model {model} --data {data} --labels {labels} --max-windows 8 --num-probe-windows 4 --num-measured 4",
    "table": "compare {teacher} {model}",
    "unfinished": f"train --data {{data}} --labels {{labels}} {CONCEPTS} --num-tokens 6144 --checkpoint-every-steps 4 "
    "--num-evaluations 4 --max-validation-windows 4",
}
#: What reads each folder, besides the command that made it, given again: it says what the folder holds, or continues it.
READERS = {
    "data": [
        FOLDERS["teacher"],
        FOLDERS["sae"],
        FOLDERS["labels"],
        FOLDERS["targets"],
        FOLDERS["scores"],
        FOLDERS["cards"],
        f"plan --data {{data}} {STUDENT} {SHORT}",
    ],
    "teacher": [
        FOLDERS["sae"],
        FOLDERS["labels"],
        FOLDERS["targets"],
        FOLDERS["table"],
        f"train --data {{data}} --teacher {{teacher}} --distillation.weight 1 {STUDENT} {SHORT}",
    ],
    "sae": [
        FOLDERS["labels"],
        "steer-eval --model {model} --teacher {teacher} --sae {sae} --data {data} --num-concepts 2 "
        "--num-prompt-tokens 5 --num-new-tokens 5 --num-prompts 10 --num-windows 8",
    ],
    "labels": [
        FOLDERS["model"],
        FOLDERS["cards"],
        "extract --labels {labels} --data {data} --attribution.control shuffled",
    ],
    "targets": [f"train --data {{data}} --distillation.targets {{targets}} --distillation.weight 1 {STUDENT} {SHORT}"],
    "model": [
        FOLDERS["scores"],
        FOLDERS["cards"],
        FOLDERS["table"],
        "generate --model {model} --prompt def --max-new-tokens 4 --steer 3=0.4",
    ],
}


@dataclass(frozen=True)
class Fault:
    """One thing done to one file."""

    name: str
    file: str
    do: Callable[[Path], object]
    is_of_file: bool = True
    """Every command meets it; faults of JSON and of caches go to the commands in turn."""


def main() -> None:
    parser = options("faults", __doc__, "work")
    parser.add_argument(
        "--max-fields", type=int, default=MAX_FIELDS, help="fields of a JSON file; default: %(default)s"
    )
    parser.add_argument("--kinds", nargs="*", default=list(FOLDERS), help="folders to damage; default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # commands run in forked processes
    work, result = arguments.work.absolute(), arguments.output.absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    os.chdir(work)
    outcomes = functools.partial(_outcomes, folders=_made(), work=work, max_fields=arguments.max_fields)
    found: list[dict[str, str]] = []
    counts: dict[str, collections.Counter[str]] = {}
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
        for kind, cases in zip(arguments.kinds, pool.map(outcomes, arguments.kinds), strict=True):
            counts[kind] = collections.Counter(case["outcome"] for case in cases)
            print(f"{kind}: {dict(counts[kind])}", flush=True)
            found += [case for case in cases if case["outcome"] not in ("refused", "same result", "said")]
    for case in found:
        print(json.dumps(case), flush=True)
    store(
        result,
        "faults",
        kinds={kind: dict(sorted(count.items())) for kind, count in counts.items()},
        found=found,
    )
    if found:
        sys.exit(f"{len(found)} faults passed silently, ended in a traceback or left something behind")


def _made() -> dict[str, Path]:
    """The folders of the pipeline, made in this process in the current folder."""
    whole = Path("whole")
    whole.mkdir(parents=True)
    folders = {"text": whole / "text.jsonl"}
    rng = random.Random(0)
    documents = ("\n".join(" ".join(rng.choices(WORDS, k=5)) for _ in range(30)) for _ in range(60))
    lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    folders["text"].write_text(lines, encoding="utf-8")
    for name, command in FOLDERS.items():
        folders[name] = whole / name
        if cocomix(_words(command, folders, folders[name])):
            sys.exit(f"{name} could not be made")
    folders |= {"finished": folders["unfinished"], "unfinished": Path("unfinished")}
    _interrupt(_words(FOLDERS["unfinished"], folders, folders["unfinished"]), folders["unfinished"])
    return folders


def _interrupt(words: list[str], run: Path) -> None:
    """Start a run and kill it after its second checkpoint."""
    child = os.fork()
    if not child:
        _become(words)
    while len(list(run.glob("checkpoints/step-*"))) < 2:
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if (run / MANIFEST_NAME).exists():
        sys.exit("the run was finished before it was killed: give it more tokens")


def _words(command: str, folders: Mapping[str, Path], output: Path | None) -> list[str]:
    words = [word.format_map({name: str(path) for name, path in folders.items()}) for word in command.split()]
    takes_output = words[0] not in ("plan", "generate") and output is not None
    return [*words, "--output", str(output)] if takes_output else words


def _outcomes(kind: str, folders: Mapping[str, Path], work: Path, max_fields: int) -> list[dict[str, str]]:
    """What became of every fault with every command, which all run on a copy of the folders."""
    own, rng, cases = work / f"of-{kind}", random.Random(kind), []
    for part in ("whole", "unfinished"):
        shutil.copytree(work / part, own / part)
    os.chdir(own)
    damaged, output, again = folders[kind], Path("output"), FOLDERS[kind]
    made = _content(folders["finished" if kind == "unfinished" else kind])
    expected = {}
    for command in READERS.get(kind, []):
        results = [_run(_words(command, folders, output), output) for _ in range(2)]
        if results[0] != results[1] or results[0][0] != "ended":
            sys.exit(f"{command!r} gave {results}")
        expected[command] = results[0]
    commands = [*expected, again]
    for number, fault in enumerate(list(_faults(work / damaged, rng, max_fields))):
        for command in commands if fault.is_of_file else [commands[number % len(commands)]]:
            shutil.rmtree(damaged, ignore_errors=True)
            shutil.copytree(work / damaged, damaged)
            fault.do(damaged / fault.file)
            if command is again:
                outcome, said = _run(_words(command, folders, damaged), None)
                whole = outcome == "ended" and _content(damaged) == made
            else:
                outcome, said = _run(_words(command, folders, output), output)
                whole = (outcome, said) == expected[command]
            if outcome == "ended":
                outcome = "same result" if whole else "said" if SAYS_SO in said else "silent"
            case = {"kind": kind, "file": fault.file, "fault": fault.name, "command": command.split()[0]}
            cases.append({**case, "outcome": outcome, "said": said[-300:]})
    return cases


def _faults(folder: Path, rng: random.Random, max_fields: int) -> Iterator[Fault]:
    """Faults of every file but those that are for people to edit."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name.startswith(".") or path.name in (CONFIG_NAME, CARD_NAME, NAMES_NAME):
            continue
        name = path.relative_to(folder).as_posix()
        fault = functools.partial(Fault, file=name, is_of_file="/." not in f"/{name}")  # of caches in turn too
        size = path.stat().st_size
        if size:
            place, bit = rng.randrange(size), 1 << rng.randrange(8)
            yield fault("bit flipped", do=functools.partial(_flip, place=place, bit=bit))
            yield fault("cut in half", do=functools.partial(os.truncate, length=size // 2))
            yield fault("emptied", do=functools.partial(os.truncate, length=0))
        yield fault("deleted", do=Path.unlink)
        yield fault("made a folder", do=lambda file: (file.unlink(), file.mkdir()))
        if path.suffix == ".json":
            yield from _json_faults(name, json.loads(path.read_text(encoding="utf-8")), rng, max_fields)


def _json_faults(name: str, value: Any, rng: random.Random, max_fields: int) -> Iterator[Fault]:
    for text in ("null", "[]", "{}", "7", "[" * 100_000, '{"kind": ' + "9" * 5_000 + "}", '"\\ud800"', "NaN"):
        written = functools.partial(Path.write_text, data=text, encoding="utf-8")
        yield Fault(f"overwritten by {text[:12]}", name, written, is_of_file=False)
    fields = list(_fields(value))
    for keys in fields if len(fields) <= max_fields else rng.sample(fields, max_fields):
        where = "/".join(map(str, keys))
        for fault, edit in (("change", _changed), ("other type", _retyped), ("removal", None)):
            yield Fault(f"{fault} of {where}", name, lambda file, keys=keys, edit=edit: _edit(file, keys, edit), False)


def _fields(value: Any, keys: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every member, at every depth."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield (*keys, key)
        yield from _fields(member, (*keys, key))


def _edit(file: Path, keys: Sequence[str | int], edit: Callable[[Any], Any] | None) -> None:
    value = json.loads(file.read_text(encoding="utf-8"))
    owner = value
    for key in keys[:-1]:
        owner = owner[key]
    if edit is None:
        del owner[keys[-1]]
    else:
        owner[keys[-1]] = edit(owner[keys[-1]])
    file.write_text(json.dumps(value), encoding="utf-8")


def _changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return [*value, 1]
    return {**value, "x": 1} if isinstance(value, dict) else 1


def _retyped(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else "x"


def _flip(file: Path, place: int, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= bit
    file.write_bytes(data)


def _run(words: list[str], output: Path | None) -> tuple[str, str]:
    """Run a command in a process of its own: what became of it, and its result or what it said.

    Args:
        words: the command.
        output: its output folder, which is removed before; None if it is checked elsewhere.
    """
    if output is not None:
        shutil.rmtree(output, ignore_errors=True)
    child = os.fork()
    if not child:
        _become(words)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    printed, errors = (Path(name).read_text(encoding="utf-8", errors="replace") for name in ("stdout", "stderr"))
    if code == 0:
        return "ended", printed.replace(str(output), "") + json.dumps({} if output is None else _content(output))
    num_sentences = sum(line.startswith("error:") for line in errors.splitlines())
    if code not in (1, 2) or num_sentences != 1 or "Traceback" in errors or "its traceback is" in errors:
        return "traceback", f"exit code {code}: {errors}"
    return "left behind" if output is not None and output.exists() else "refused", errors


def _become(words: list[str]) -> NoReturn:
    """Turn this forked process into the command."""
    signal.alarm(SECONDS_A_COMMAND)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    code: int | str | None = 99
    try:
        code = cocomix(words)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 98)


def _content(folder: Path) -> dict[str, Any]:
    """What a folder holds, without times."""
    about = (CONFIG_NAME, SETTINGS_NAME, MANIFEST_NAME, CARD_NAME, METRICS_NAME, *CONCEPT_METADATA_NAMES)
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    content: dict[str, Any] = {
        name.as_posix(): sha256_of_file(path)
        for name, path in paths.items()
        if name.name not in about and not any(part.startswith(".") for part in name.parts)
    }
    metrics = folder / METRICS_NAME
    return content | ({METRICS_NAME: untimed(read_metrics(folder), TIMES)} if metrics.exists() else {})


if __name__ == "__main__":
    main()
