"""How fast the studio answers while continuations are being written.

    python -m benchmarks.studio_latency --demo runs/demo --output benchmarks/results/studio_latency.json

Two models: the demo's, and one of the paper's smallest size with random weights (width 512, 8 blocks, 32,768 concepts).
Nobody, one browser and four browsers write both continuations over and over. Meanwhile three questions are timed again and
again: the status, a whole new page, and in a browser of its own the concepts of the token that the pointer has just moved to,
from the movement until the page shows them. Needs Chromium.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import torch
from playwright.sync_api import Browser, Page, sync_playwright
from transformers import LlamaConfig

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.base.artifacts import write_json
from cocomix.data.tokenizer import load_tokenizer

NUM_WRITERS = (0, 1, 4)
MEASURED_SECONDS = 4.0
PROMPT = "class Reader:\n    def __init__(self, path):\n        self.path = path\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True, help="folder of a finished demo")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large"
        save_large_model(large, arguments.demo / "cocomix")
        models = {name: measure(path) for name, path in (("demo", arguments.demo / "cocomix"), ("69m", large))}
    write_json(
        arguments.output,
        {
            "command": f"python -m benchmarks.studio_latency --demo {arguments.demo} --output {arguments.output}",
            "num_cpus": os.cpu_count(),
            "load_average_at_end": round(os.getloadavg()[0], 1),
            "models": models,
        },
    )


def save_large_model(folder: Path, tokenizer_of: Path) -> None:
    """Random weights of the paper's 69M size, with a tokenizer that is at hand."""
    tokenizer = load_tokenizer(tokenizer_of)
    backbone = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = CoCoMixConfig(backbone_config=backbone, insert_layer=3, num_concepts=32_768, num_active_concepts=32)
    torch.manual_seed(0)
    CoCoMixForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measure(model: Path) -> dict[str, Any]:
    """Answers of a studio that shows one model, in milliseconds, by the number of browsers that write."""
    command = [sys.executable, "-m", "cocomix.cli.main", "studio", str(model), "--port", "0", "--no-open"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    address = next(found[0] for line in process.stderr if (found := re.search(r"http://[\d.:]+", line)))
    try:
        with sync_playwright() as playwright:
            path = shutil.which("chromium") or shutil.which("google-chrome")
            browser = playwright.chromium.launch(executable_path=path, args=["--headless=new", "--no-sandbox"])
            result = {f"{number} writers": questions(browser, address, number) for number in NUM_WRITERS}
            browser.close()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
    return result


def questions(browser: Browser, address: str, num_writers: int) -> dict[str, Any]:
    writers = [open_page(browser, f"{address}/?prompt=import+os&pins=3:4&tokens=512") for _ in range(num_writers)]
    reader = open_page(browser, address)
    reader.get_by_label("Prompt").fill(PROMPT)
    reader.locator(".token").nth(9).wait_for()
    with httpx.Client(base_url=address) as client:
        return {
            "status": timed(lambda: client.get("/status"), writers),
            "new page": timed(lambda: client.get("/"), writers),
            "concepts of a token": timed(pointing(reader), writers),
        }


def open_page(browser: Browser, address: str) -> Page:
    page = browser.new_context().new_page()
    page.goto(address)
    page.locator(".masthead").wait_for()
    return page


def pointing(page: Page) -> Callable[[], Any]:
    """Points at the next token and waits until its concepts are shown."""
    position = 0

    def point() -> None:
        nonlocal position
        position = (position + 1) % 10
        page.locator(".token").nth(position).hover()
        page.wait_for_function(
            "text => document.querySelector('.panel-title').textContent.includes(text)",
            arg=f"token {position + 1} of",
            polling="raf",
        )

    return point


def timed(question: Callable[[], Any], writers: list[Page]) -> dict[str, float]:
    """Milliseconds of a question asked for some seconds, while the writers write."""
    milliseconds = []
    end = time.monotonic() + MEASURED_SECONDS
    while time.monotonic() < end:
        for page in writers:  # whoever has finished starts again
            page.evaluate("document.querySelector('.go:not(.stop)')?.click()")
        before = time.perf_counter()
        question()
        milliseconds.append(1000 * (time.perf_counter() - before))
        time.sleep(0.03)
    milliseconds.sort()
    return {
        "count": len(milliseconds),
        "median": round(milliseconds[len(milliseconds) // 2], 1),
        "p95": round(milliseconds[int(0.95 * len(milliseconds))], 1),
        "largest": round(milliseconds[-1], 1),
    }


if __name__ == "__main__":
    main()
