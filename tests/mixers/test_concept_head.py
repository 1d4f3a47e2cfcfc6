"""The chunked head equals its dense reference: values, indices, loss and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cocomix import CocomixError
from cocomix.mixers import head as concept_head
from cocomix.mixers import linear_head
from cocomix.tools.bench import reference

MEGABYTE = 2**20


def inputs(
    N: int, C: int, A: int, D: int = 12, dtype: torch.dtype = torch.double
) -> tuple[list[torch.Tensor], torch.Tensor]:
    leaves = [torch.randn(N, D), torch.randn(C, D), torch.randn(C), torch.randn(C, D)]
    return [leaf.to(dtype).requires_grad_(True) for leaf in leaves], torch.randint(0, C, (N, A))


@pytest.mark.parametrize("with_labels", [True, False])
@pytest.mark.parametrize(
    ("N", "C", "K", "A", "rows"),
    [(1, 5, 1, 1, 9), (63, 50, 7, 4, 10), (40, 33, 33, 2, 1), (17, 100, 3, 4, 17), (1000, 1024, 5, 3, 300)],
)
def test_forward_and_all_gradients_equal_the_dense_reference(
    monkeypatch: pytest.MonkeyPatch, N: int, C: int, K: int, A: int, rows: int, with_labels: bool
) -> None:
    monkeypatch.setattr(linear_head, "_MEGABYTE", C * 8)  # a row in float64: `rows` at a time
    leaves, all_labels = inputs(N, C, A)
    x, weight, bias, compress_weight = leaves
    all_labels[1::3, A // 2 :] = -100  # a third of the rows has fewer labels, or none
    labels = all_labels if with_labels else None
    # Weights that differ by element, so that no two gradient paths can cancel or hide each other.
    out_weights = torch.randn(N, x.shape[1]).double()

    values, indices, loss = concept_head.predict_concepts(x, weight, bias, K, labels, rows)
    vectors = concept_head.compress_concepts(values, indices, compress_weight)
    fast = torch.autograd.grad(1.5 * loss + (vectors * out_weights).sum(), leaves)

    z, active, _ = reference.concept_head(x, weight, bias, K)
    expected_loss = torch.zeros(()).double()
    if labels is not None:
        expected_loss = reference.concept_losses(z, labels).sum()
    expected_vectors = active @ compress_weight
    slow = torch.autograd.grad(1.5 * expected_loss + (expected_vectors * out_weights).sum(), leaves)

    # float64: only the order of summation differs.
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(vectors, expected_vectors)
    torch.testing.assert_close(torch.zeros(N, C).double().scatter(-1, indices, values), active)
    for name, got, expected in zip(("x", "weight", "bias", "compress"), fast, slow, strict=True):
        torch.testing.assert_close(got, expected, msg=lambda text, name=name: f"gradient of {name}: {text}")


@pytest.mark.parametrize(("N", "C", "K"), [(1, 1000, 32), (63, 1000, 1000), (1000, 4096, 32)])
def test_float32_is_within_rounding_of_the_reference(N: int, C: int, K: int) -> None:
    """Relative to the size of each tensor: sums of C terms in another order differ by a few times 2^-24."""
    (x, weight, bias, _), labels = inputs(N, C, 4, dtype=torch.float32)
    values, indices, loss = concept_head.predict_concepts(x, weight, bias, K, labels, logits_megabytes=1)
    fast = torch.autograd.grad(loss + values.square().sum(), (x, weight, bias))
    z, active, _ = reference.concept_head(x, weight, bias, K)
    losses = reference.concept_losses(z, labels)
    slow = torch.autograd.grad(losses.sum() + active.square().sum(), (x, weight, bias))
    assert torch.equal(indices, (x @ weight.T + bias).topk(K).indices)
    for got, expected in zip((loss, *fast), (losses.sum(), *slow), strict=True):
        assert (got - expected).norm() <= 1e-5 * expected.norm()


def test_the_largest_are_found_in_the_groups_with_the_largest_maxima() -> None:
    z = torch.randn(9, 64 * 40)
    z[:, 64:128] += 5  # most of them in one group
    z[4] = torch.arange(64 * 40).flip(0).float()
    z[5, 7], z[5, 64 * 40 - 1] = torch.inf, -torch.inf
    for k in (1, 2, 19):
        values, indices = linear_head._largest(z, k)
        expected = z.topk(k)
        assert torch.equal(values, expected.values)
        assert torch.equal(indices, expected.indices)


def test_gradients_pass_gradcheck() -> None:
    (x, weight, bias, _), labels = inputs(5, 9, 3, D=4)
    labels[1, 1:], labels[3] = -100, -100

    def run(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return concept_head.predict_concepts(*leaves, 3, labels)[::2]

    assert torch.autograd.gradcheck(run, (x, weight, bias))


def test_repeated_labels_count_as_often_as_they_stand() -> None:
    (x, weight, bias, _), _ = inputs(4, 6, 1)
    labels = torch.tensor([[2, 2, 2, 1]] * 4)
    loss = concept_head.predict_concepts(x, weight, bias, 2, labels)[2]
    expected = reference.concept_losses(reference.concept_head(x, weight, bias, 2)[0], labels).sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, weight), torch.autograd.grad(expected, weight))


def test_rows_count_by_the_labels_they_have() -> None:
    (x, weight, bias, _), labels = inputs(4, 6, 3)
    labels[0, 1:], labels[1] = -100, -100
    loss = concept_head.predict_concepts(x, weight, bias, 2, labels)[2]
    log_p = (x @ weight.T + bias).log_softmax(-1)
    wanted = [[c for c in row if c >= 0] for row in labels.tolist()]
    expected = -sum(log_p[n, c] / len(row) for n, row in enumerate(wanted) for c in row)
    torch.testing.assert_close(loss, expected)
    for got, by_hand in zip(*(torch.autograd.grad(one, (x, weight, bias)) for one in (loss, expected)), strict=True):
        torch.testing.assert_close(got, by_hand)


def test_a_kept_graph_has_the_same_gradients_again() -> None:
    (x, weight, bias, _), labels = inputs(7, 20, 2)
    loss = concept_head.predict_concepts(x, weight, bias, 3, labels)[2]
    first, second = (torch.autograd.grad(loss, (x, weight, bias), retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_second_derivatives_are_refused_also_where_the_upstream_gradient_is_a_constant() -> None:
    (x, weight, bias, _), labels = inputs(7, 20, 2)
    values, _, loss = concept_head.predict_concepts(x, weight, bias, 3, labels)
    for result in (loss, values.sum()):
        with pytest.raises(CocomixError, match="second derivative"):
            torch.autograd.grad(result, x, create_graph=True)


def test_no_rows_at_all() -> None:
    (x, weight, bias, _), labels = inputs(0, 20, 2)
    values, indices, loss = concept_head.predict_concepts(x, weight, bias, 3, labels)
    assert values.shape == indices.shape == (0, 3)
    assert loss == 0
    for gradient in torch.autograd.grad(loss + values.sum(), (x, weight, bias)):
        assert not gradient.any()


def test_gradients_become_the_parameters_without_a_copy_and_only_where_wanted() -> None:
    (x, weight, bias, _), labels = inputs(7, 20, 2)
    bias.requires_grad_(False)
    places = []
    weight.register_hook(lambda grad: places.append(grad.data_ptr()))
    concept_head.predict_concepts(x, weight, bias, 3, labels)[2].backward()
    assert weight.grad is not None
    assert places == [weight.grad.data_ptr()]
    assert bias.grad is None
    with torch.no_grad():
        values, _, loss = concept_head.predict_concepts(x, weight, bias, 3, labels)
    assert not values.requires_grad
    assert not loss.requires_grad


def test_activation_checkpointing_and_a_loss_that_nothing_uses() -> None:
    (x, weight, bias, _), labels = inputs(7, 20, 2)

    def run(x: torch.Tensor) -> torch.Tensor:
        values, _, loss = concept_head.predict_concepts(x, weight, bias, 3, labels)
        return loss + values.sum()

    plain = torch.autograd.grad(run(x), (x, weight, bias))
    checkpointed = torch.autograd.grad(checkpoint(run, x, use_reentrant=False), (x, weight, bias))
    assert all(torch.equal(one, other) for one, other in zip(plain, checkpointed, strict=True))
    with_labels = torch.autograd.grad(concept_head.predict_concepts(x, weight, bias, 3, labels)[0].sum(), weight)
    without = torch.autograd.grad(concept_head.predict_concepts(x, weight, bias, 3)[0].sum(), weight)
    assert torch.equal(*with_labels, *without)


@pytest.mark.slow
def test_compiled_code_calls_it_as_it_is() -> None:
    (x, weight, bias, _), labels = inputs(7, 20, 2)
    row_weights = torch.rand(7).double()

    def run(
        x: torch.Tensor,
    ) -> torch.Tensor:  # below the functions whose shapes are checked here, which no trace passes
        values, _, loss = linear_head._apply(2 * x, weight, bias, labels, row_weights, 3, MEGABYTE, torch.double, True)
        return loss + values.sum()

    compiled = torch.compile(run, backend="aot_eager")
    got, expected = (torch.autograd.grad(function(x), (x, weight)) for function in (compiled, run))
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("C", [1000, 32768, pytest.param(131072, marks=pytest.mark.slow)])
def test_beside_gradients_nothing_grows_with_the_number_of_logits(C: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor that a pass makes is a chunk or a gradient, whatever the number of rows."""
    largest = 0
    new_empty = torch.Tensor.new_empty

    def noted(self: torch.Tensor, *size: int, **options: object) -> torch.Tensor:
        nonlocal largest
        made = new_empty(self, *size, **options)
        largest = max(largest, made.numel() * made.itemsize)
        return made

    monkeypatch.setattr(torch.Tensor, "new_empty", noted)
    with FakeTensorMode():
        x, weight, bias = torch.empty(100_000, 8), torch.empty(C, 8, requires_grad=True), torch.empty(C)
        labels = torch.zeros(100_000, 4, dtype=torch.long)
        values, _, loss = concept_head.predict_concepts(x[:3000], weight, bias, 32, labels[:3000], logits_megabytes=8)
        (loss + values.sum()).backward()
    assert largest <= 8 * MEGABYTE


def test_autocast_rounds_operands_and_no_gradient_of_the_weight() -> None:
    """Operands are cast inside, classes filled up, and sums over chunks stay in float32."""
    (x, weight, bias, _), labels = inputs(1000, 1000, 4, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        _, indices, loss = concept_head.predict_concepts(x, weight, bias, 5, labels, logits_megabytes=1)
        fast = torch.autograd.grad(loss, (x, weight, bias))
    assert int(indices.max()) < 1000
    rounded = [leaf.detach().bfloat16().float().requires_grad_(True) for leaf in (x, weight)]
    z, _, _ = reference.concept_head(*rounded, bias, 5)
    slow = torch.autograd.grad(reference.concept_losses(z, labels).sum(), (*rounded, bias))
    for got, wanted in zip(fast, slow, strict=True):
        assert got.dtype == torch.float32
        assert (got - wanted).norm() <= 0.01 * wanted.norm()
    assert not torch.equal(fast[1], fast[1].bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_adds_up_in_float32(dtype: torch.dtype) -> None:
    """The loss is that of the rounded operands and products; many rows in many chunks lose nothing more."""
    (x, weight, bias, _), labels = inputs(1000, 2000, 4, dtype=torch.float32)
    x_low, weight_low = (leaf.detach().to(dtype).requires_grad_(True) for leaf in (x, weight))
    loss = concept_head.predict_concepts(x_low, weight_low, bias, 5, labels, logits_megabytes=1)[2]
    z = (x_low @ weight_low.t()).float() + bias
    expected = torch.stack([F.cross_entropy(z, some, reduction="sum") for some in labels.unbind(-1)]).mean()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    fast, slow = (torch.autograd.grad(one, (x_low, weight_low, bias)) for one in (loss, expected))
    for got, wanted in zip(fast, slow, strict=True):
        assert got.dtype == wanted.dtype
        # Products of operands that are rounded to 8 (bfloat16) or 11 bits.
        assert (got - wanted).float().norm() <= 0.01 * wanted.float().norm()
