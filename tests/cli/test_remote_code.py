"""Code that comes with a model or a tokenizer never runs unless the user says so, whatever stands on standard input."""

from __future__ import annotations

import ast
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

import cocomix
from cocomix.base import remote_code
from cocomix.cli.main import main
from cocomix.steering.concept_names import ConceptNames
from cocomix.studio.model import StudioModel
from cocomix.studio.runs import NamedFolder
from cocomix.tools.inspect import config as inspect_config
from cocomix.tools.steer_eval import config as steer_eval_config
from tests.conftest import Tiny
from tests.modeling.helpers import foreign, student

OWN_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Path({mark!r}).touch()

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
#: Every command that loads a model or a tokenizer of others, and its options.
COMMANDS: dict[str, Callable[[Tiny, Path, Path], list[object]]] = {
    "prepare": lambda tiny, model, sae: ["--text", tiny.corpus, "--tokenizer", model],
    "train-sae": lambda tiny, model, sae: ["--teacher", model, "--data", tiny.data, "--layer", 0],
    "extract": lambda tiny, model, sae: ["--teacher", model, "--data", tiny.data, "--sae", sae, "--layer", 0],
    "distill-targets": lambda tiny, model, sae: ["--teacher", model, "--data", tiny.data],
    "train": lambda tiny, model, sae: ["--teacher", model, "--data", tiny.data, "--distillation.weight", 1],
    "plan": lambda tiny, model, sae: ["--recipe", "gpt2-tiny-kd", "--teacher", model, "--device", "a100"],
    "eval": lambda tiny, model, sae: ["--model", model, "--data", tiny.data],
    "inspect": lambda tiny, model, sae: ["--model", model, "--data", tiny.data],
    "generate": lambda tiny, model, sae: ["--model", model, "--prompt", "def"],
    "steer-eval": lambda tiny, model, sae: [
        *("--model", model, "--teacher", model, "--data", tiny.data, "--sae", sae, "--layer", 0)
    ],
}
WITHOUT_OUTPUT = ("plan", "generate")


def edit(file: Path, **values: Any) -> None:
    stored = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(stored | values))


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once foreign code has run; standard input agrees to everything."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 99))
    monkeypatch.setattr(remote_code, "_trusted", False)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "code-ran"


def own_model(tiny: Tiny, folder: Path, mark: Path) -> Path:
    """A model whose configuration, weights and tokenizer are read by classes of its own."""
    foreign(tiny.teacher, folder)
    (folder / "own.py").write_text(OWN_CODE.format(mark=str(mark)))
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    edit(folder / "config.json", model_type="own", architectures=["OwnForCausalLM"], auto_map=classes)
    auto_map = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    edit(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=auto_map)
    return folder


def run(command: str, tiny: Tiny, model: Path, tmp_path: Path) -> int:
    sae = tmp_path / "sae"
    if not sae.exists():
        foreign(tiny.sae, sae)
    output = () if command in WITHOUT_OUTPUT else ("--output", tmp_path / "out")
    return main([command, *map(str, (*COMMANDS[command](tiny, model, sae), *output))])


@pytest.fixture(autouse=True)
def _seems_to_have_concepts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that need concepts refuse these models before they load them; here they go on."""
    for module in (inspect_config, steer_eval_config):
        monkeypatch.setattr(module, "require_concepts", lambda model: ConceptNames(8))


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_the_code_of_a_model(
    command: str, tiny: Tiny, mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, tiny, own_model(tiny, tmp_path / "model", mark), tmp_path) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(r"error: .*--trust-remote-code", error)
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_the_code_runs_for_who_asks_for_it(
    tiny: Tiny, mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = own_model(tiny, tmp_path / "model", mark)
    assert main(["--trust-remote-code", "generate", "--model", str(model), "--prompt", "def", "--json"]) == 0
    assert mark.exists()
    assert json.loads(capsys.readouterr().out)["continuation"]


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "prepare"])
def test_no_command_fetches_the_attention_that_a_configuration_names(
    command: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = foreign(tiny.teacher, tmp_path / "model")
    edit(model / "config.json", attn_implementation="organisation/kernel")
    assert run(command, tiny, model, tmp_path) == 1
    assert "organisation/kernel" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_s_own_way_to_generate_is_not_loaded(tiny: Tiny, mark: Path, tmp_path: Path) -> None:
    own = foreign(tiny.teacher, tmp_path / "model") / "custom_generate" / "generate.py"
    own.parent.mkdir()
    own.write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\ndef generate(model, **_): pass\n")
    assert main(["generate", "--model", str(tmp_path / "model"), "--prompt", "def"]) == 0
    assert not mark.exists()


def test_neither_does_the_backbone_of_a_student(mark: Path, tmp_path: Path) -> None:
    student().save_pretrained(tmp_path)
    backbone = json.loads((tmp_path / "config.json").read_text())["backbone_config"]
    edit(tmp_path / "config.json", backbone_config=backbone | {"attn_implementation": "organisation/kernel"})
    with pytest.raises(cocomix.CocomixError, match="organisation/kernel"):
        cocomix.load_causal_lm(tmp_path)
    # A family without a causal LM, for which transformers would look into the folder.
    (tmp_path / "own.py").write_text(OWN_CODE.format(mark=str(mark)))
    clip = AutoConfig.for_model("clip_text_model").to_dict()
    classes = {"AutoModelForCausalLM": f"{tmp_path}--own.OwnForCausalLM"}
    edit(tmp_path / "config.json", backbone_config=clip | {"auto_map": classes}, tie_word_embeddings=False)
    with pytest.raises(cocomix.CocomixError, match="--trust-remote-code"):
        cocomix.load_causal_lm(tmp_path)
    assert not mark.exists()


def test_the_studio_loads_no_tokenizer_of_its_own_code(tiny: Tiny, mark: Path, tmp_path: Path) -> None:
    student().save_pretrained(tmp_path)
    (tmp_path / "own.py").write_text(OWN_CODE.format(mark=str(mark)))
    shutil.copy(tiny.teacher / "tokenizer.json", tmp_path)
    auto_map = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    edit(tmp_path / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=auto_map)
    with pytest.raises(cocomix.CocomixError, match="--trust-remote-code"):
        StudioModel(NamedFolder("model", tmp_path))
    assert not mark.exists()


def test_every_loader_says_whether_code_is_trusted() -> None:
    """Where `transformers` is not told, it asks."""
    calls = [
        (file.name, {keyword.arg for keyword in node.keywords})
        for file in Path(cocomix.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and re.match(r"Auto\w+\.from_(pretrained|config)$", ast.unparse(node.func))
    ]
    assert len(calls) >= 5
    assert [name for name, keywords in calls if "trust_remote_code" not in keywords] == []
