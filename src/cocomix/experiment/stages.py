"""Stages of an experiment, from its file. This module loads no torch: a mistake is refused before anything runs.

A section of the file holds options of one command, by the names that the command line has. What a section leaves out is
wired: the folders of earlier stages, the seed, the layer, and for every student the labels or the teacher it learns from.

    data  teacher  sae     options of `prepare`, `train` and `train-sae`; or a path or Hub name of what exists
    labels                 options of `extract`, run for each way in which students choose labels; or a path, or `live`
    targets                options of `distill-targets`: distillation then reads stored draws
    students               a name each, with options of `train` and a `title`
    train                  options of every training run, the teacher's too
    evaluation  comparison  inspection  report
    base                   another file, over which this one is laid
    output  text  seed  layer  launch  plugins  plan
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError, nearest
from cocomix.base.hub import HUB_PLACE, require_known_place
from cocomix.base.kinds import CONCEPT_DATASET, DEMO, TOKEN_DATASET
from cocomix.cli.main import COMMANDS, import_plugin, imported
from cocomix.cli.options import as_options, parse, read_yaml
from cocomix.cli.paths import check_paths
from cocomix.experiment.config import RunConfig
from cocomix.labels.config import AttributionConfig, require_labels
from cocomix.training.config import NOT_NEEDED, TrainConfig

FILES = Path(__file__).parent / "files"
#: What is run, kept in the experiment's folder.
COPY_NAME = "experiment.yaml"
#: Command and title of a section's stages, in their order; the report is no command.
SECTIONS = {
    "data": ("prepare", "text to tokens"),
    "teacher": ("train", "teacher"),
    "sae": ("train-sae", "dictionary of concepts"),
    "labels": ("extract", "concept labels"),
    "targets": ("distill-targets", "the teacher's draws"),
    "students": ("train", "student"),
    "evaluation": ("eval", "evaluation"),
    "comparison": ("compare", "comparison of all students"),
    "inspection": ("inspect", "a card for every concept"),
    "report": ("", "report"),
}
_SHARED = ("base", "output", "text", "seed", "layer", "launch", "plugins", "plan", "train")
#: Sections that may name what exists already.
_MAY_BE_GIVEN = ("data", "teacher", "sae", "labels", "targets")
#: In place of a folder of labels: every student computes its own while it trains.
LIVE = "live"
#: Sections whose commands share their work among processes.
_LAUNCHED = ("teacher", "labels", "targets", "students")

Options = dict[str, Any]
#: Parts of the file by their place in it, later ones over earlier ones.
Sources = list[tuple[str, Options]]


@dataclass(frozen=True)
class Machine:
    """The section `plan`: the devices that costs are counted for, and what is not known before the text is prepared."""

    device: str
    """As for `cocomix plan`."""
    devices: int = 1
    """Number of devices."""
    peak_tflops: float | None = None
    """Of a device that is not in the table."""
    utilisation: float = 0.4
    """Share of the peak that the algorithmic FLOPs are expected to reach."""
    vocab_size: int | None = None
    """Of a tokenizer that is not trained here."""
    text_tokens: int | None = None
    """Tokens of the training text, each of which is labelled once."""
    dollars_per_device_hour: float | None = None
    """Price."""


@dataclass(frozen=True)
class Stage:
    """One command line of an experiment."""

    name: str
    """Its folder in the experiment's."""
    section: str
    title: str
    options: Options = field(default_factory=dict)
    """Of the command, nested."""
    config: Any = None
    """The same, parsed; None: the report."""
    launch: str = ""
    """What stands in place of `python` where the command runs in processes of its own; empty: it runs in this one."""
    num_tokens: int | None = None
    """Tokens for which its windows have to be enough; None: its command takes all, or its options say how many."""

    @property
    def command(self) -> str:
        return SECTIONS[self.section][0]

    @property
    def arguments(self) -> list[str]:
        """Of the command line."""
        return _arguments(self.options)

    def is_done(self, root: Path) -> bool:
        return bool(self.command) and (root / self.name / artifacts.MANIFEST_NAME).exists()


@dataclass(frozen=True)
class Student:
    """What is known of a student before there is anything to train it on."""

    title: str
    run: TrainConfig
    sources: Sources


@dataclass(frozen=True)
class Experiment:
    """A whole experiment."""

    file: Path
    root: Path
    """Folder in which every stage has its own."""
    values: Options
    """Content of the file, with what the command line replaced."""
    stages: tuple[Stage, ...]
    students: Mapping[str, Student]
    machine: Machine | None

    def place(self, section: str) -> Path | None:
        """Where the result of `data`, `teacher`, `sae` or `targets` is, made here or given; None: nowhere."""
        return _place(self.values, self.root, section)

    def check(self) -> None:
        """Refuse an output folder that is not an experiment's, and inputs of which it can be told that they don't fit.

        Raises:
            CocomixError: one of them is missing, or holds something else.
        """
        self._check_root()
        for section in _MAY_BE_GIVEN:
            path = self.values.get(section)
            if isinstance(path, str) and path != LIVE:
                _require_given(self.file, section, path)
        for stage in self.stages:
            if stage.command and not stage.config.overwrite:
                writes = COMMANDS[stage.command].writes
                artifacts.check_output(self.root / stage.name, writes, self.with_windows(stage).config.settings())
            if stage.section == "data":
                try:
                    check_paths(stage.config, "")
                except CocomixError as error:
                    raise CocomixError(f"{self.file}: {error}") from None
            if stage.section == "evaluation":  # its benchmarks; the model is not there yet
                replace(stage.config, probes=False, teacher=None, sae=None).check_files()
            labels = getattr(stage.config, "labels", None)
            if stage.section == "students" and labels is not None and (labels / artifacts.MANIFEST_NAME).exists():
                stored = artifacts.read(labels, CONCEPT_DATASET, files=()).settings["attribution"]
                require_labels(labels, stored, stage.config.attribution)

    def _check_root(self) -> None:
        root = self.root
        if not root.is_dir():
            artifacts.check_output(root, DEMO)
            return
        if any(not entry.name.startswith(".") for entry in root.iterdir()) and not (root / COPY_NAME).exists():
            header = artifacts.read_header(root) if (root / artifacts.SETTINGS_NAME).exists() else {}
            if header.get("kind") != DEMO:  # what version 0.1 left is continued
                raise CocomixError(f"{root} holds files that are not an experiment's; choose another --output")

    def with_windows(self, stage: Stage) -> Stage:
        """The stage on as many windows as the tokens to train on need; as it is while the text is not prepared.

        All students then see the same windows in the same order, whatever else they read.
        """
        data = self.place("data")
        if stage.num_tokens is None or data is None or not (data / artifacts.MANIFEST_NAME).exists():
            return stage
        facts = artifacts.read(data, TOKEN_DATASET, files=()).facts
        counts = [facts["splits"]["train"]["num_windows"], -(-stage.num_tokens // facts["context_length"])]
        labels = self.values.get("labels")
        if isinstance(labels, str) and labels != LIVE:
            counts.append(artifacts.read(Path(labels), CONCEPT_DATASET, files=()).settings["num_windows"])
        options = stage.options | {"num_windows": min(counts)}
        return replace(stage, options=options, config=replace(stage.config, num_windows=min(counts)))


def find_file(name: str) -> Path:
    """The file of an experiment, by its path or the name of one that comes with cocomix.

    Raises:
        CocomixError: there is neither.
    """
    shipped = {file.stem: file for file in sorted(FILES.glob("*.yaml"))}
    if Path(name).is_file():
        return Path(name)
    if name.removesuffix(".yaml") in shipped:
        return shipped[name.removesuffix(".yaml")]
    raise CocomixError(
        f"there is no file {name}, and cocomix brings no experiment of that name{nearest(name, shipped)}"
    )


def read_experiment(config: RunConfig) -> Experiment:
    """The experiment of a file, every stage's options checked.

    Raises:
        CocomixError: the file can't be read, or a name or a value in it is wrong; the message says where.
    """
    file = find_file(config.file)
    try:
        values = _with_base(file)
    except RecursionError:
        raise CocomixError(f"{file} is nested too deeply") from None
    given = {"output": config.output, "text": config.text and list(config.text), "seed": config.seed}
    values |= {name: value for name, value in given.items() if value is not None}
    root = Path(values.setdefault("output", Path("runs") / file.stem))
    values = _with_output(values, str(root))
    for plugin in values.get("plugins") or ():
        import_plugin(plugin)
    return _Reader(file, root, values, overwrite=config.overwrite).experiment()


class _Reader:
    """Makes the stages, in their order."""

    def __init__(self, file: Path, root: Path, values: Options, *, overwrite: bool) -> None:
        self.file, self.root, self.values, self.overwrite = file, root, values, overwrite
        self.stages: list[Stage] = []
        self.data, self.teacher, self.sae, self.targets = (
            place and str(place) for place in (_place(values, root, s) for s in ("data", "teacher", "sae", "targets"))
        )

    def experiment(self) -> Experiment:
        values, machine = self.values, None
        if values.get("plan") is not None:
            machine = self._parsed(Machine, values["plan"], [("plan", values["plan"])])
        students = {name: self._student(name) for name in self._section("students")}
        labels = self._labels(students)
        if self._makes("data"):
            text = {} if values.get("text") is None else {"text": values["text"]}
            self._add("data", "data", [("data", self._section("data"))], text)
        if self._makes("teacher"):
            sources = self._sources("teacher", self._section("teacher"))
            run = self._draft(sources)
            self._add("teacher", "teacher", sources, {"data": self.data}, run.num_tokens)
        if self._makes("sae"):
            self._add("sae", "sae", [("sae", self._section("sae"))], {"teacher": self.teacher, "data": self.data})
        most = max((student.run.num_tokens for student in students.values()), default=None)
        for attribution, folder in labels.items():
            wired: Options = {"teacher": self.teacher, "sae": self.sae, "data": self.data}
            wired |= {"attribution": dataclasses.asdict(attribution)}
            readers = [each.run for each in students.values() if _reads_labels(each.run)]
            need = max(run.num_tokens for run in readers if run.attribution == attribution)
            self._add("labels", folder, [("labels", self._section("labels"))], wired, need)
        if self._makes("targets"):
            wired = {"teacher": self.teacher, "data": self.data}
            self._add("targets", "targets", [("targets", self._section("targets"))], wired, most)
        for name, student in students.items():
            wired = {"data": self.data, **self._lessons(student.run, labels)}
            title = f"student: {student.title}"
            self._add("students", name, student.sources, wired, student.run.num_tokens, title)
        self._add_readings(students, labels)
        return Experiment(self.file, self.root, values, tuple(self.stages), students, machine)

    def _add_readings(self, students: Mapping[str, Student], labels: Mapping[AttributionConfig, str]) -> None:
        """Stages that look at trained students."""
        for name, student in students.items() if "evaluation" in self.values else ():
            options = dict(self._section("evaluation"))
            wired: Options = {"model": str(self.root / name), "data": self.data}
            if not student.run.student.mixer.has_concepts:
                options.pop("probes", None)
            elif options.setdefault("probes", True) and self.sae and _reads_labels(student.run):
                attribution = dataclasses.asdict(student.run.attribution)
                wired |= {"teacher": self.teacher, "sae": self.sae, "attribution": attribution}
            title = f"evaluation: {student.title}"
            self._add("evaluation", f"evaluation/{name}", [("evaluation", options)], wired, title=title)
        if "comparison" in self.values:  # made anew whenever it is asked for: it takes seconds, and students are added
            runs = {"runs": [str(self.root / name) for name in students], "overwrite": True}
            self._add("comparison", "comparison", [("comparison", self._section("comparison"))], runs)
        if "inspection" in self.values:
            options = dict(self._section("inspection"))
            first = next((name for name, each in students.items() if not each.run.student.mixer.unsteerable), None)
            name = options.pop("student", first)
            if name not in students or students[name].run.student.mixer.unsteerable:
                raise CocomixError(f"{self.file}: inspection needs a student with concepts, and {name} is none")
            own = next(stage.config.labels for stage in self.stages if stage.name == name)
            wired = {"model": str(self.root / name), "data": self.data, "teacher": self.teacher if self.sae else None}
            wired |= {"sae": self.sae, "labels": own and str(own)}
            self._add("inspection", "inspection", [("inspection", options)], wired)
        if "report" in self.values:
            made = {stage.name: stage.config for stage in self.stages}
            lacking = [name for name in ("ntp", "cocomix") if name not in students]
            lacking += [name for name in ("evaluation", "inspection") if name not in self.values]
            if lacking or made["cocomix"].labels is None or not self.sae:
                what = (
                    f"{lacking[0]} is missing" if lacking else "cocomix learns from no stored labels of a teacher here"
                )
                raise CocomixError(
                    f"{self.file}: the report compares the students ntp and cocomix after evaluation and inspection, but "
                    f"{what}; add it, or leave the report out"
                )
            self.stages.append(Stage("report", "report", SECTIONS["report"][1]))

    def _student(self, name: str) -> Student:
        if name in SECTIONS or name in ("concepts", "steering", "figures") or not re.fullmatch(r"[\w.-]+", name):
            raise CocomixError(
                f"{self.file}: students.{name} would have the folder of another stage; choose another name"
            )
        options = dict(self._section("students")[name])
        title = str(options.pop("title", name))
        sources = self._sources(f"students.{name}", options)
        return Student(title, self._draft(sources), sources)

    def _sources(self, place: str, options: Options) -> Sources:
        return [("train", self._section("train")), (place, options)]

    def _draft(self, sources: Sources) -> TrainConfig:
        """A training run that has neither data nor labels yet."""
        options = _merged({"data": str(NOT_NEEDED), "output": str(NOT_NEEDED)}, *(part for _, part in sources))
        options.pop("launch", None)
        run: TrainConfig = self._parsed(TrainConfig, options, sources, "train")
        run.student.check_family()
        return run

    def _labels(self, students: Mapping[str, Student]) -> dict[AttributionConfig, str]:
        """A folder for each way in which students choose labels: `concepts`, and `concepts-NAME` for those of later ones."""
        if not self._makes("labels"):
            return {}
        if "attribution" in self._section("labels"):
            raise CocomixError(
                f"{self.file}: labels.attribution is each student's own: write it as students.NAME.attribution"
            )
        folders: dict[AttributionConfig, str] = {}
        for name, student in students.items():
            if _reads_labels(student.run) and student.run.labels is None and student.run.sae is None:
                folders.setdefault(student.run.attribution, f"concepts-{name}" if folders else "concepts")
        return folders

    def _lessons(self, run: TrainConfig, labels: Mapping[AttributionConfig, str]) -> Options:
        """What a student learns from: labels or their source, draws or the teacher."""
        wired: Options = {}
        if _reads_labels(run) and run.labels is None and run.sae is None:
            given = self.values.get("labels")
            if given == LIVE:
                wired |= {"teacher": self.teacher, "sae": self.sae}
            elif given is not None:
                wired["labels"] = given if isinstance(given, str) else str(self.root / labels[run.attribution])
        if run.distillation.weight and self.targets:
            wired["distillation"] = {"targets": self.targets}
        elif any(objective.uses_teacher(run) for objective in run.objectives):
            wired["teacher"] = self.teacher
        return wired

    def _add(
        self,
        section: str,
        name: str,
        sources: Sources,
        wired: Options,
        num_tokens: int | None = None,
        title: str = "",
    ) -> None:
        """A stage, with what is wired and what the file says over it."""
        command = COMMANDS[SECTIONS[section][0]]
        config_class = imported(command.config)
        names = {each.name for each in fields(config_class)}
        wired = {key: value for key, value in wired.items() if value is not None} | {"output": str(self.root / name)}
        if "seed" in names:
            wired["seed"] = self.values.get("seed", 0)
        if "layer" in self.values and "layer" in names and (section == "sae" or "sae" in wired):
            wired["layer"] = self.values["layer"]
        if self.overwrite:
            wired["overwrite"] = True
        options = _merged(wired, *(part for _, part in sources))
        launch = options.pop("launch", self.values.get("launch", "") if section in _LAUNCHED else "")
        config = self._parsed(config_class, options, sources, SECTIONS[section][0])
        need = None if getattr(config, "num_windows", None) else num_tokens
        self.stages.append(Stage(name, section, title or SECTIONS[section][1], options, config, launch, need))

    def _section(self, name: str) -> Options:
        """The options of a section; none if it is left out, empty, or names what exists."""
        value = self.values.get(name)
        return value if isinstance(value, dict) else {}

    def _makes(self, name: str) -> bool:
        return name in self.values and not isinstance(self.values[name], str)

    def _parsed(self, config_class: type[Any], options: Options, sources: Sources, command: str = "plan") -> Any:
        """A configuration from nested options; the message about a wrong one says where in the file it is."""
        place = sources[-1][0]
        try:
            return parse(config_class, f"cocomix {command}", "", _arguments(options))
        except CocomixError as error:
            message = str(error)
            found = re.search(r"--(?!help)([\w.-]+)", message)
            if found is None:
                raise CocomixError(f"{self.file}, {place}: {error}") from None
        key = found[1].replace("-", "_")
        for name, part in [*reversed(sources), ("", self.values)]:
            if _has(part, key.split(".")):
                place = name
                break
        message = message.replace(found[0], f"{place}.{key}".strip("."), 1)
        message = re.sub(r"--(?!help)([\w.-]+)", lambda option: option[1].replace("-", "_"), message)
        raise CocomixError(f"{self.file}: {message}")


def _has(options: Any, keys: list[str]) -> bool:
    return not keys or (isinstance(options, dict) and keys[0] in options and _has(options[keys[0]], keys[1:]))


def _with_base(file: Path, above: tuple[Path, ...] = ()) -> Options:
    """What a file says, over what its `base` says."""
    if file in above:
        raise CocomixError(f"{file}: base leads back to this file")
    values = read_yaml(file)
    for name, value in values.items():  # an empty section takes every default
        if value is None and name in (*SECTIONS, "train"):
            values[name] = {}
    if isinstance(students := values.get("students"), dict):
        values["students"] = {name: {} if options is None else options for name, options in students.items()}
    _check_sections(file, values)
    base = values.pop("base", None)
    if base is None:
        return values
    return _merged(_with_base(find_file(str(base)), (*above, file)), values)


def _check_sections(file: Path, values: Options) -> None:
    known = [*SECTIONS, *_SHARED]
    for name, value in values.items():
        if name not in known:
            raise CocomixError(f"{file}: there is no section {name!r}{nearest(str(name), known)}")
        takes_options = name in (*SECTIONS, "train") or (name == "plan" and value is not None)
        if takes_options and not isinstance(value, dict) and not (name in _MAY_BE_GIVEN and isinstance(value, str)):
            raise CocomixError(f"{file}: {name} holds {value!r}; it takes options as `name: value`")
    for name, options in (values.get("students") or {}).items():
        if not isinstance(options, dict):
            raise CocomixError(f"{file}: students.{name} holds {options!r}; it takes options as `name: value`")


def _require_given(file: Path, section: str, path: str) -> None:
    if section == "teacher":
        require_known_place(f"{file}: teacher", path)
    elif not Path(path).exists() and not (section == "sae" and HUB_PLACE.fullmatch(path)):
        raise CocomixError(f"{file}: {section} names {path}, which does not exist")


def _place(values: Options, root: Path, section: str) -> Path | None:
    if section not in values:
        return None
    return Path(values[section]) if isinstance(values[section], str) else root / section


def _reads_labels(run: TrainConfig) -> bool:
    return run.concept_loss.is_on(run)


def _arguments(options: Options) -> list[str]:
    """Nested options as arguments; `runs` are positional."""
    rest = {name: value for name, value in options.items() if name != "runs"}
    return [*options.get("runs", ()), *as_options(rest)]


def _merged(*parts: Options) -> Options:
    """Nested options, later ones over earlier ones."""
    merged: Options = {}
    for part in parts:
        for name, value in part.items():
            before = merged.get(name)
            merged[name] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _with_output(value: Any, root: str) -> Any:
    """The value with the experiment's folder in place of `{output}`."""
    if isinstance(value, dict):
        return {name: _with_output(part, root) for name, part in value.items()}
    if isinstance(value, list):
        return [_with_output(part, root) for part in value]
    return value.replace("{output}", root) if isinstance(value, str) else value
