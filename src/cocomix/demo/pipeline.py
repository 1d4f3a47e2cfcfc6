"""Text to report: the stages one after another, each a function that anyone can call.

A finished stage is recognised and an unfinished one continued, so the demo itself keeps no state.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocomix.base import artifacts
from cocomix.base.progress import say
from cocomix.concepts.attribution import AttributionConfig
from cocomix.concepts.extraction import ExtractConfig, extract, load_extractor
from cocomix.concepts.sae_training import TrainSaeConfig, train_sae
from cocomix.data.concept_dataset import ConceptDataset
from cocomix.data.prepare import PrepareConfig, prepare
from cocomix.data.token_dataset import TokenDataset
from cocomix.demo.report import write_report
from cocomix.demo.sizes import DemoSize, SizeName, StudentRun, demo_size
from cocomix.demo.summary import summarize
from cocomix.evaluation.command import EvalConfig, evaluate
from cocomix.interpretation.contexts import most_used_concepts
from cocomix.interpretation.continuation import most_steerable
from cocomix.modeling.loading import load_causal_lm
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.training.config import OptimizerConfig, TrainConfig
from cocomix.training.loop import train

KIND = "demo"
CONCEPTS_KIND = "concept-report"
SUMMARY_NAME = "summary.json"
REPORT_NAME = "report.html"


@dataclass(frozen=True)
class DemoConfig:
    """One demo."""

    output: Path
    """Folder of the demo: a folder for each stage, `report.html`, `summary.json` and figures."""
    size: SizeName = "default"
    """smoke: under a minute; default: at most 15 minutes on two cores; large: about two hours, with baselines."""
    text: tuple[Path, ...] = ()
    """Text, Markdown, JSON-lines and Parquet files or folders; by default the running Python's standard library."""
    seed: int = 0
    """Seed of everything."""
    overwrite: bool = False
    """Replace what a former demo left in the output folder."""


def run_demo(config: DemoConfig) -> Path:
    """Run or continue the demo; returns the path of the report."""
    settings = {
        "size": config.size,
        "text": [str(path) for path in config.text],
        "seed": config.seed,
    }
    with artifacts.begin(config.output, KIND, settings, overwrite=config.overwrite) as finished:
        pipeline = _Pipeline(config, demo_size(config.size))
        pipeline.run_stages()
        if not finished:
            pipeline.write_results()
            artifacts.finish(config.output)
    return config.output / REPORT_NAME


class _Pipeline:
    """The stages of one demo, in order."""

    def __init__(self, config: DemoConfig, size: DemoSize) -> None:
        self.config, self.size, self.root = config, size, config.output
        self.data, self.teacher, self.sae = self.root / "data", self.root / "teacher", self.root / "sae"
        self.cards = self.root / "concept-report"
        self.concepts = self._concept_folders()
        self.num_stages = 5 + len(self.concepts) + 2 * len(size.students)
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
        self._announce("concepts, their contexts, and one of them steered")
        self._write_cards()

    def write_results(self) -> None:
        """Summary, figures and report from the folders of the stages."""
        self._announce("report")
        summary = summarize(self.root, self.size, self.config.seed)
        artifacts.write_json(self.root / SUMMARY_NAME, summary)
        write_report(self.root, summary)

    def _concept_folders(self) -> dict[AttributionConfig, Path]:
        """One concept dataset for each way of choosing labels: CoCoMix's in `concepts`, others named by their student."""
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
                distillation_weight=run.distillation_weight,
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

    def _write_cards(self) -> None:
        """The most used concepts and a steered continuation, as `concept-report/concepts.json`."""
        settings = {
            "model": artifacts.fingerprint_of_folder(self.root / "cocomix"),
            "concepts": artifacts.fingerprint_of_folder(self.root / "concepts"),
        }
        with artifacts.begin(self.cards, CONCEPTS_KIND, settings) as finished:
            if finished:
                return
            extractor = load_extractor(self.teacher, self.sae, AttributionConfig())
            concepts = ConceptDataset(self.root / "concepts", TokenDataset(self.data))
            validation = TokenDataset(self.data, "validation")
            cards = most_used_concepts(
                concepts, extractor.teacher, extractor.sae, validation, max_windows=self.size.report_windows
            )
            model = load_causal_lm(self.root / "cocomix")
            assert isinstance(model, CoCoMixForCausalLM)
            steered = most_steerable(
                model, extractor.teacher, extractor.sae, validation, [card.concept for card in cards]
            )
            result: dict[str, Any] = {
                "most_used": [dataclasses.asdict(card) for card in cards],
                "steering": dataclasses.asdict(steered) if steered is not None else None,
            }
            artifacts.write_json(self.cards / "concepts.json", result)
            artifacts.finish(self.cards)
