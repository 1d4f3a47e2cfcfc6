"""Chosen pre-activations have the gradients that the whole tensor's would be."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cocomix.sae.chosen import Choice, chosen_pre_activations


@pytest.mark.parametrize("has_fixed_number", [True, False])
@pytest.mark.parametrize(("N", "D", "C", "K"), [(1, 1, 1, 1), (7, 5, 19, 3), (63, 8, 10, 10)])
def test_values_and_all_gradients_equal_those_of_the_dense_form(
    N: int, D: int, C: int, K: int, has_fixed_number: bool
) -> None:
    x, weight, bias = (torch.randn(*shape).double().requires_grad_(True) for shape in ((N, D), (C, D), (C,)))
    z = F.linear(x, weight, bias)
    if has_fixed_number:
        tokens, indices = torch.arange(N).repeat_interleave(K), z.topk(K, dim=-1).indices.flatten()
    else:  # some tokens have none
        tokens, indices = (z > 0.5).nonzero(as_tuple=True)
    choice, expected = Choice.of(tokens, indices, N), z[tokens, indices]
    assert torch.equal(choice.tokens, tokens)
    found = chosen_pre_activations(z.detach(), choice, x, weight, bias)
    assert torch.equal(found, expected)
    leaves, upstream = (x, weight, bias), torch.randn(len(indices)).double()
    # The same products in float64, added in another order.
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, upstream), torch.autograd.grad(expected, leaves, upstream)
    )
