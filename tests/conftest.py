"""Shared fixtures: shape checking, and one tiny pipeline from text to labels that most tests build on."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import install_import_hook

import tests.shape_checker  # noqa: F401  (the hook below takes it by name)

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Libraries first: what is imported under the hook is compiled from its source, whatever cache Python has of it.
for _library in (
    "datasets",
    "jinja2",
    "matplotlib.pyplot",
    "pandas",
    "rich.progress",
    "torch._dynamo",
    "transformers.generation",
    "transformers.modeling_utils",
    "transformers.tokenization_utils_tokenizers",
    "transformers.models.auto.modeling_auto",
    "tyro",
    "yaml",
):
    importlib.import_module(_library)

# Shapes and dtypes of every annotated function are checked while the suite runs, and only then.
SHAPES_UNCHECKED = "COCOMIX_SHAPES_UNCHECKED"
if SHAPES_UNCHECKED not in os.environ:
    install_import_hook("cocomix", "tests.shape_checker.check")

from cocomix.data.config import PrepareConfig
from cocomix.data.prepare import prepare
from cocomix.labels.config import ExtractConfig
from cocomix.labels.extract import extract
from cocomix.mixers.config import ConceptConfig
from cocomix.sae.config import TrainSaeConfig
from cocomix.tools.sae_card.command import train_sae
from cocomix.training.command import train
from cocomix.training.config import StudentConfig, TrainConfig

WORDS = ("def", "return", "import", "self", "for", "in", "range", "class", "print", "value", "name", "None", "True")
STUDENT = StudentConfig(hidden_size=16, num_layers=2, num_heads=2)
CONCEPT = dataclasses.replace(STUDENT, mixer=ConceptConfig(num_active_concepts=4))
#: Coverage is measured on these: the other families go through the same lines, and tracing makes them a half slower.
COVERED_FAMILIES = ("gpt2", "gemma3_text")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and callspec.params.get("family") not in (None, *COVERED_FAMILIES):
            item.add_marker(pytest.mark.no_cover)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test marked `unchecked_shapes` in a process of its own: a compiler that traces the code traces its checks."""
    if SHAPES_UNCHECKED in os.environ or pyfuncitem.get_closest_marker("unchecked_shapes") is None:
        return None
    command = [sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", "-m", "", pyfuncitem.nodeid]
    done = subprocess.run(
        command, env=os.environ | {SHAPES_UNCHECKED: "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return True


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium. It is a module's alone: while it runs, nothing else can have an event loop."""
    api = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium here; on Debian: apt-get install chromium")
    switches = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    switches += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found, args=switches)


def write_corpus(path: Path, num_documents: int = 60, seed: int = 0) -> Path:
    """A JSON-lines corpus of pseudo-code with some regularity to learn."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_documents):
            lines = [f"# document {number}: naïve text ☕"]
            for _ in range(30):
                first = rng.choice(WORDS)
                lines.append(" ".join([first, *(rng.choice(WORDS) for _ in range(rng.randint(2, 6))), first]))
            file.write(json.dumps({"text": "\n".join(lines)}) + "\n")
    return path


@dataclass(frozen=True)
class Tiny:
    """Folders of a tiny pipeline."""

    corpus: Path
    data: Path
    teacher: Path
    sae: Path
    concepts: Path
    root: Path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Corpus, token dataset, teacher, autoencoder and labels, made once; tests must not write into them."""
    root = tmp_path_factory.mktemp("tiny")
    corpus = write_corpus(root / "corpus.jsonl")
    made = Tiny(corpus, root / "data", root / "teacher", root / "sae", root / "concepts", root)
    prepare(PrepareConfig(output=made.data, text=(corpus,), vocab_size=300, context_length=16, validation_fraction=0.2))
    train(TrainConfig(data=made.data, output=made.teacher, student=STUDENT, num_tokens=4096, num_evaluations=2))
    train_sae(
        TrainSaeConfig(
            teacher=made.teacher,
            data=made.data,
            output=made.sae,
            layer=0,
            num_latents=32,
            k=6,
            num_tokens=4096,
            batch_size=16,
            tokens_per_update=64,
        )
    )
    extract(ExtractConfig(teacher=made.teacher, sae=made.sae, data=made.data, output=made.concepts))
    return made


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tensors this small are slower on two
