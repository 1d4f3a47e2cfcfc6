"""Chosen pre-activations have the gradients that the whole tensor's would be."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cocomix.sae.update import chosen_pre_activations


@pytest.mark.parametrize(("N", "D", "C", "K"), [(1, 1, 1, 1), (7, 5, 19, 3), (63, 8, 10, 10)])
def test_values_and_all_gradients_equal_those_of_the_dense_form(N: int, D: int, C: int, K: int) -> None:
    x, weight, bias = (torch.randn(*shape).double().requires_grad_(True) for shape in ((N, D), (C, D), (C,)))
    upstream = torch.randn(N, K).double()
    z = F.linear(x, weight, bias)
    indices = z.topk(K, dim=-1).indices
    expected = z.gather(-1, indices)
    found = chosen_pre_activations(z.detach(), indices, x, weight, bias)
    assert torch.equal(found, expected)
    leaves = (x, weight, bias)
    # The same products in float64, added in another order.
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, upstream), torch.autograd.grad(expected, leaves, upstream)
    )
