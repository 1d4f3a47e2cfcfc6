"""From text of your own to two students, their comparison and a steered continuation, stage by stage.

    python examples/tutorials/your_text.py FILE-OR-FOLDER... runs/mine

Each stage writes a folder. Run it again after an interruption: what is finished is recognised, what is not continues.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cocomix


def main(text: tuple[Path, ...], output: Path, num_tokens: int = 1_000_000) -> str:
    """Train on the text; returns a prompt's continuations without and with one concept steered."""
    data, teacher, sae, labels = (output / name for name in ("data", "teacher", "sae", "labels"))

    # Text to windows of tokens; a tokenizer is trained unless one is given.
    cocomix.prepare(cocomix.PrepareConfig(output=data, text=text))

    # Any decoder can teach. This one sees twice as many tokens as its students.
    cocomix.train(cocomix.recipe("gpt2-small-ntp", data=data, output=teacher, num_tokens=2 * num_tokens))

    # A dictionary of the teacher's residual stream after block 1, and the four concepts that are strongest at each token.
    cocomix.train_sae(cocomix.TrainSaeConfig(teacher=teacher, data=data, output=sae, layer=1, num_tokens=num_tokens))
    cocomix.extract(cocomix.ExtractConfig(teacher=teacher, sae=sae, data=data, output=labels))

    # Two students: plain next-token prediction, and one that predicts concepts and adds them to its hidden states.
    plain, concepts = output / "ntp", output / "cocomix"
    cocomix.train(cocomix.recipe("gpt2-small-ntp", data=data, output=plain, num_tokens=num_tokens))
    cocomix.train(
        cocomix.recipe("gpt2-small-recommended", data=data, labels=labels, output=concepts, num_tokens=num_tokens)
    )
    print(cocomix.compare(cocomix.CompareConfig((str(plain), str(concepts)))))

    # What does the student think in? A card for every concept, and a site to read them.
    inspection = output / "inspection"
    cocomix.inspect(
        cocomix.InspectConfig(model=concepts, data=data, labels=labels, teacher=teacher, sae=sae, output=inspection)
    )
    return steered(concepts, inspection)


def steered(model_folder: Path, inspection: Path) -> str:
    """Continue a prompt as it is, and toward the concept that is predicted most often."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cards = cocomix.CardReader(inspection)
    counts = cards.columns("num_predicted")["num_predicted"]
    concept = max(range(len(cards)), key=counts.__getitem__)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    prompt = tokenizer("The ", return_tensors="pt")
    before = model.generate(**prompt, max_new_tokens=10)
    with cocomix.steer(model, {concept: 0.5}, "toward"):
        after = model.generate(**prompt, max_new_tokens=10)
    texts = [tokenizer.decode(ids[0]) for ids in (before, after)]
    return f"as it is: {texts[0]}\ntoward {cards.card(concept).name!r}: {texts[1]}"


if __name__ == "__main__":
    print(main(tuple(map(Path, sys.argv[1:-1])), Path(sys.argv[-1])))
