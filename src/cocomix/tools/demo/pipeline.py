"""The demo from text to report: its stages in order, each a public function.

Finished stages are recognised and unfinished ones continue, so the demo itself keeps no state.
"""

from __future__ import annotations

from pathlib import Path

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.base.kinds import DEMO
from cocomix.base.progress import say
from cocomix.data.config import PrepareConfig
from cocomix.data.prepare import prepare
from cocomix.data.token_dataset import TokenDataset
from cocomix.evaluation.command import evaluate
from cocomix.evaluation.config import EvalConfig
from cocomix.labels.config import AttributionConfig, ExtractConfig
from cocomix.labels.extract import extract
from cocomix.objectives.config import DistillationConfig
from cocomix.sae.config import TrainSaeConfig
from cocomix.tools.demo.config import DemoConfig
from cocomix.tools.demo.report import REPORT_NAME, write_report
from cocomix.tools.demo.sizes import DemoSize, StudentRun, demo_size
from cocomix.tools.demo.steering_example import steering_example
from cocomix.tools.demo.summary import most_used_concepts, summarize
from cocomix.tools.inspect.command import inspect
from cocomix.tools.inspect.config import InspectConfig
from cocomix.tools.sae_card.command import train_sae
from cocomix.training.command import train
from cocomix.training.config import OptimizerConfig, TrainConfig

SUMMARY_NAME = "summary.json"


def run_demo(config: DemoConfig) -> Path:
    """Run or continue the demo; returns the path of the report."""
    _forget_lost_results(config.output)
    with artifacts.begin(config.output, DEMO, config.settings(), overwrite=config.overwrite) as finished:
        pipeline = _Pipeline(config, demo_size(config.size))
        pipeline.run_stages()
        if not finished:
            pipeline.write_results()
            artifacts.finish(config.output)
    return config.output / REPORT_NAME


def _forget_lost_results(output: Path) -> None:
    """If report, summary or figures are damaged, make all of them again, which takes seconds."""
    if (output / artifacts.MANIFEST_NAME).exists():
        try:
            artifacts.read(output, DEMO)
        except CocomixError as error:
            say(f"{error}; making the report again")
            (output / artifacts.MANIFEST_NAME).unlink()


class _Pipeline:
    """The stages of one demo, in order."""

    def __init__(self, config: DemoConfig, size: DemoSize) -> None:
        self.config, self.size, self.root = config, size, config.output
        self.data, self.teacher, self.sae = self.root / "data", self.root / "teacher", self.root / "sae"
        self.concepts = self._concept_folders()
        self.num_stages = 6 + len(self.concepts) + 2 * len(size.students)
        self.stage = 0

    def run_stages(self) -> None:
        size, seed = self.size, self.config.seed
        self._announce("text to tokens")
        prepare(
            PrepareConfig(
                output=self.data,
                text=self.config.text,
                vocab_size=size.vocab_size,
                context_length=size.context_length,
                max_bytes=size.max_bytes,
                seed=seed,
            )
        )
        num_windows = TokenDataset(self.data).num_windows
        student_windows = min(num_windows, -(-size.student_tokens // size.context_length))
        teacher_windows = min(num_windows, -(-size.teacher_tokens // size.context_length))

        self._announce("teacher")
        self._train("teacher", StudentRun("teacher", size.teacher), size.teacher_tokens, teacher_windows)
        self._announce("sparse autoencoder on the teacher's residual stream")
        train_sae(
            TrainSaeConfig(
                teacher=self.teacher,
                data=self.data,
                output=self.sae,
                layer=size.sae_layer,
                num_latents=size.num_latents,
                k=size.num_active_latents,
                num_tokens=size.sae_tokens,
                tokens_per_update=size.sae_tokens_per_update,
                max_validation_windows=size.report_windows,
                num_counted_tokens=0,  # the windows above are enough for a demo
                seed=seed,
            )
        )
        for attribution, folder in self.concepts.items():
            self._announce("concept labels")
            extract(
                ExtractConfig(
                    teacher=self.teacher,
                    sae=self.sae,
                    data=self.data,
                    output=folder,
                    attribution=attribution,
                    num_windows=student_windows,
                )
            )
        for name, run in size.students.items():
            self._announce(f"student: {run.title}")
            self._train(name, run, size.student_tokens, student_windows)
        for name, run in size.students.items():
            self._announce(f"evaluation: {run.title}")
            evaluate(self._evaluation(name, run))
        self._announce("inspection: a card for every concept")
        inspect(
            InspectConfig(
                model=self.root / "cocomix",
                data=self.data,
                labels=self.root / "concepts",
                teacher=self.teacher,
                sae=self.sae,
                output=self.root / "inspection",
                max_windows=size.inspected_windows,
                num_probe_windows=size.inspected_windows // 8,  # the evaluation has run them on all of the text
            )
        )
        self._announce("one concept steered")
        steering_example(
            self.root / "cocomix",
            self.teacher,
            self.sae,
            self.data,
            self.root / "steering",
            most_used_concepts(self.root / "inspection"),
        )

    def write_results(self) -> None:
        """Summary, figures and report from the folders of the stages."""
        self._announce("report")
        summary = summarize(self.root, self.size, self.config.seed)
        artifacts.write_json(self.root / SUMMARY_NAME, summary)
        write_report(self.root, summary)

    def _concept_folders(self) -> dict[AttributionConfig, Path]:
        """One concept dataset per way of choosing labels: CoCoMix's in `concepts`, the others named after their student."""
        folders = {self.size.students["cocomix"].attribution: self.root / "concepts"}
        for name, run in self.size.students.items():
            folders.setdefault(run.attribution, self.root / f"concepts-{name}")
        return {attribution: folder for attribution, folder in folders.items() if attribution is not None}

    def _announce(self, title: str) -> None:
        self.stage += 1
        say(f"[{self.stage}/{self.num_stages}] {title}")

    def _train(self, name: str, run: StudentRun, num_tokens: int, num_windows: int) -> None:
        train(
            TrainConfig(
                data=self.data,
                output=self.root / name,
                labels=self.concepts[run.attribution] if run.attribution else None,
                teacher=self.teacher if run.distillation_weight else None,
                student=run.student,
                optimizer=OptimizerConfig(learning_rate=self.size.learning_rate),
                num_tokens=num_tokens,
                batch_size=self.size.batch_size,
                num_windows=num_windows,
                concept_loss=run.concept_loss,
                distillation=DistillationConfig(weight=run.distillation_weight),
                seed=self.config.seed,
                max_validation_windows=self.size.curve_windows,
            )
        )

    def _evaluation(self, name: str, run: StudentRun) -> EvalConfig:
        return EvalConfig(
            model=self.root / name,
            data=self.data,
            output=self.root / "evaluation" / name,
            probes=run.attribution is not None,
            teacher=self.teacher if run.attribution else None,
            sae=self.sae if run.attribution else None,
            attribution=run.attribution or AttributionConfig(),
            max_windows=self.size.report_windows,
        )
