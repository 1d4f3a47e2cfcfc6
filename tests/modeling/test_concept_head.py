"""The chunked head equals its dense reference: values, indices, losses and every gradient."""

from __future__ import annotations

import pytest
import torch

from cocomix.modeling import concept_head
from tests.reference.concepts import compress
from tests.reference.concepts import concept_head as reference_head


def inputs(N: int, C: int, A: int, D: int = 12) -> tuple[list[torch.Tensor], torch.Tensor]:
    leaves = [torch.randn(N, D), torch.randn(C, D), torch.randn(C), torch.randn(C, D)]
    return [leaf.double().requires_grad_(True) for leaf in leaves], torch.randint(0, C, (N, A))


@pytest.mark.parametrize("with_labels", [True, False])
@pytest.mark.parametrize(
    ("N", "C", "K", "A", "chunk_elements"),
    [(1, 5, 1, 1, 2**24), (63, 50, 7, 4, 50 * 10), (40, 33, 33, 2, 1), (17, 100, 3, 4, 100 * 17)],
)
def test_forward_and_all_gradients_equal_the_dense_reference(
    monkeypatch: pytest.MonkeyPatch, N: int, C: int, K: int, A: int, chunk_elements: int, with_labels: bool
) -> None:
    monkeypatch.setattr(concept_head, "CHUNK_ELEMENTS", chunk_elements)
    leaves, all_labels = inputs(N, C, A)
    x, weight, bias, compress_weight = leaves
    labels = all_labels if with_labels else None
    # Weights that differ by row and element, so that no two gradient paths can cancel or hide each other.
    row_weights, out_weights = torch.randn(N).double(), torch.randn(N, x.shape[1]).double()

    values, indices, losses = concept_head.predict_concepts(x, weight, bias, K, labels)
    vectors = concept_head.compress_concepts(values, indices, compress_weight)
    fast = torch.autograd.grad((losses * row_weights).sum() + (vectors * out_weights).sum(), leaves)

    active, expected_losses = reference_head(x, weight, bias, K, labels)
    expected_vectors = compress(active, compress_weight)
    slow = torch.autograd.grad((expected_losses * row_weights).sum() + (expected_vectors * out_weights).sum(), leaves)

    # float64: only the order of summation differs.
    torch.testing.assert_close(losses, expected_losses)
    torch.testing.assert_close(vectors, expected_vectors)
    torch.testing.assert_close(torch.zeros(N, C).double().scatter(-1, indices, values), active)
    for name, got, expected in zip(("x", "weight", "bias", "compress"), fast, slow, strict=True):
        torch.testing.assert_close(got, expected, msg=lambda text, name=name: f"gradient of {name}: {text}")


def test_gradients_pass_gradcheck() -> None:
    (x, weight, bias, _), labels = inputs(5, 9, 3, D=4)
    assert torch.autograd.gradcheck(
        lambda *leaves: concept_head.predict_concepts(*leaves, 3, labels)[::2], (x, weight, bias)
    )


def test_repeated_labels_count_as_often_as_they_stand() -> None:
    (x, weight, bias, _), _ = inputs(4, 6, 1)
    labels = torch.tensor([[2, 2, 2, 1]] * 4)
    losses = concept_head.predict_concepts(x, weight, bias, 2, labels)[2]
    torch.testing.assert_close(losses, reference_head(x, weight, bias, 2, labels)[1])
    losses.sum().backward()
    assert weight.grad is not None
