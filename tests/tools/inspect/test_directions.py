"""Directions toward concepts equal their definition, computed token by token."""

from __future__ import annotations

import pytest
import torch

from cocomix import CocomixError, CoCoMixForCausalLM, TokenDataset
from cocomix.mixers.edits import ConceptEdit, concept_edits
from cocomix.steering import directions as module
from cocomix.steering.concept_metadata import read_metadata
from cocomix.steering.directions import NUM_STRONGEST, RIDGE, concept_directions
from tests.conftest import Tiny
from tests.modeling import helpers
from tests.modeling.helpers import NUM_CONCEPTS
from tests.tools.inspect.test_activations import reader_of


class _Plus(ConceptEdit):
    """Adds a leaf to the mixture, and keeps the active concepts."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shift = torch.zeros(shape, requires_grad=True)

    def edit_active(self, indices: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.indices = indices
        return indices, values

    def edit_vectors(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors + self.shift


def test_directions_equal_their_definition(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    data = TokenDataset(tiny.data, "validation")
    model = reader_of(data)
    monkeypatch.setattr(module, "BATCH_SIZE", 4)
    found = concept_directions(model, data, 10)

    scores, is_next = [], []
    for windows in data.batches(1, 10):
        ids = windows.input_ids
        edit = _Plus((1, ids.shape[1], model.config.hidden_size))
        with concept_edits(model, edit):
            log_probabilities = model(input_ids=ids).logits.log_softmax(-1)
        log_probabilities[0, :-1].gather(-1, ids[0, 1:, None]).sum().backward()
        for t in range(ids.shape[1] - 1):
            scores.append(edit.shift.grad[0, t].double())
            strongest = set(edit.indices[0, t + 1, :NUM_STRONGEST].tolist())
            is_next.append([concept in strongest for concept in range(NUM_CONCEPTS)])
    s, y = torch.stack(scores), torch.tensor(is_next)
    information = torch.cov(s.t(), correction=0)
    ridge = RIDGE * information.trace() / len(information) * torch.eye(len(information))
    for concept in range(NUM_CONCEPTS):
        if not bool(y[:, concept].any()):
            assert not bool(found[concept].any())
            continue
        gain = s[y[:, concept]].mean(0) - s.mean(0)
        direction = torch.linalg.inv(information + ridge) @ gain
        direction /= (direction @ information @ direction).sqrt()
        torch.testing.assert_close(found[concept].double(), direction, atol=1e-3, rtol=1e-3)


def test_models_without_mixed_concepts_are_refused(tiny: Tiny) -> None:
    for model in (helpers.student(mixer="pause"), helpers.student(mixing="none")):
        with pytest.raises(CocomixError, match="no directions"):
            concept_directions(model, TokenDataset(tiny.data, "validation"))


def test_inspect_stores_exactly_these_beside_the_model(tiny: Tiny, inspection: Path) -> None:
    folder = inspection.parent / "cocomix"
    model = CoCoMixForCausalLM.from_pretrained(folder).eval()
    expected = concept_directions(model, TokenDataset(tiny.data, "validation"), 24)  # as many windows as it read
    for place in (folder, inspection):
        statistics = read_metadata(place, 32).statistics
        assert statistics is not None
        assert torch.equal(statistics.directions, expected)
