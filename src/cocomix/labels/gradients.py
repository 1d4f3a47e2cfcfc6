"""The gradient of the teacher's loss at the hook: what attribution multiplies its latents by.

    point          loss        g_t
    original       all_future  d(sum over s > t of loss_s)/d(h_t) at h: one backward
    original       next_token  d(loss_{t+1})/d(h_t) at h: one pass of copies
    reconstruction next_token  the same with Dec(c_t) in place of h_t alone: one pass of copies

loss_s is -log p(x_s | x_{<s}), so the sum over s > t is all of the loss that h_t can change. The leaf is always a detached
residual stream: no graph exists below the hook and no parameter gradient is allocated. Logits live for a chunk of positions.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache, DynamicCache

from cocomix.data import IGNORED_LABEL
from cocomix.labels.config import AttributionLoss
from cocomix.modeling.losses import at_least_float32
from cocomix.modeling.teacher import Teacher

# Shapes: B batch, T tokens, D width of the teacher, V vocabulary, P copies in one pass.


#: Elements of one chunk's logits: 64 MB in float32. An accelerator multiplies larger ones faster (`mixers/linear_head.py`).
CHUNK_ELEMENTS = 2**24
#: Positions of a window that are copied in one pass: their mask is [P, T + P].
COPIES_PER_PASS = 512


def residual_gradient(
    teacher: Teacher,
    input_ids: Int64[Tensor, "B T"],
    h: Float[Tensor, "B T D"],
    *,
    loss: AttributionLoss,
    replacement: Float[Tensor, "B T D"] | None = None,
    position_ids: Int64[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T D"]:
    """d(loss)/d(h_t) of every position t, in nats a unit of the residual stream; zero at the last position of a window.

    Args:
        teacher: frozen.
        input_ids: the windows.
        h: their residual streams at the hook.
        loss: `all_future`, or the loss of token t + 1 alone.
        replacement: the point, in place of h_t alone while all other positions keep their own h; None: h itself. Only for
            the loss of token t + 1: for all later losses two replaced positions would see one another.
        position_ids: positions that start over in isolated documents; None: attention crosses documents.
    """
    targets = F.pad(input_ids[:, 1:], (0, 1), value=IGNORED_LABEL)
    if loss == "next_token":
        return _next_token(teacher, targets, h, h if replacement is None else replacement, position_ids)
    assert replacement is None, "refused by AttributionConfig"
    leaf = h.detach().requires_grad_(True)
    return _backward(teacher, teacher.hidden(leaf, position_ids=position_ids), targets, leaf)


def _next_token(teacher: Teacher, targets: Tensor, h: Tensor, point: Tensor, position_ids: Tensor | None) -> Tensor:
    """d(loss of token t + 1)/d(point_t).

    Keys and values of the unperturbed sequence are cached without a graph. Then a copy of every position runs above them,
    seeing the strictly earlier originals and itself; so a copy can only change its own loss, and one gradient of the summed
    loss holds every position's own.
    """
    T = h.shape[1]
    positions = torch.arange(T, device=h.device).unsqueeze(0) if position_ids is None else position_ids
    cache = _unperturbed_cache(teacher, h, position_ids)
    parts = []
    for start in range(0, T, COPIES_PER_PASS):
        stop = min(start + COPIES_PER_PASS, T)
        itself = torch.eye(stop - start, dtype=torch.bool, device=h.device).expand(len(positions), -1, -1)
        masks = {
            layer_type: _as_mask(torch.cat([_visible(positions, start, stop, window, 1), itself], dim=-1), h)
            for layer_type, window in teacher.adapter.sliding_windows().items()
        }
        leaf = point[:, start:stop].detach().requires_grad_(True)
        hidden = teacher.hidden(
            leaf, position_ids=positions[:, start:stop], attention_mask=masks, cache=_prefix(cache, stop)
        )
        parts.append(_backward(teacher, hidden, targets[:, start:stop], leaf))
    return torch.cat(parts, dim=1)


def _visible(positions: Tensor, start: int, stop: int, window: int | None, min_distance: int) -> Tensor:
    """Which originals, [0, stop), the positions [start, stop) may see: [B, stop - start, stop], bool.

    These are the originals of the same document, at least `min_distance` back and as far as the window reaches.
    """
    documents = (positions == 0).cumsum(-1)
    index = torch.arange(stop, device=positions.device)
    distance = index[start:].unsqueeze(-1) - index
    near = (distance >= min_distance) & (distance < (window or stop))
    return near & (documents[:, start:stop].unsqueeze(-1) == documents[:, :stop].unsqueeze(1))


def _as_mask(visible: Tensor, h: Tensor) -> Float[Tensor, "B 1 Q S"]:
    mask = torch.zeros(visible.shape, dtype=h.dtype, device=h.device)
    return mask.masked_fill(~visible, torch.finfo(h.dtype).min).unsqueeze(1).expand(len(h), -1, -1, -1)


def _backward(teacher: Teacher, hidden: Tensor, targets: Tensor, leaf: Tensor) -> Tensor:
    """d(summed loss)/d(leaf): through the head in chunks of positions, then once through the blocks."""
    rows, flat_targets = hidden.detach().flatten(0, 1), targets.flatten()
    grad = torch.empty_like(rows)
    most = CHUNK_ELEMENTS if rows.device.type == "cpu" else 8 * CHUNK_ELEMENTS
    size = max(1, most // teacher.model.config.vocab_size)
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        chunk = rows[part].unsqueeze(0).requires_grad_(True)
        logits = at_least_float32(teacher.adapter.logits(chunk).squeeze(0))  # (n, V)
        loss = F.cross_entropy(logits, flat_targets[part], ignore_index=IGNORED_LABEL, reduction="sum")
        grad[part] = torch.autograd.grad(loss, chunk)[0].squeeze(0)
    return torch.autograd.grad(hidden, leaf, grad.view_as(hidden))[0]


@torch.no_grad()
def _unperturbed_cache(teacher: Teacher, h: Tensor, position_ids: Tensor | None) -> Cache:
    """Keys and values of the blocks above the hook, at every position; isolated documents are kept apart."""
    cache, masks = DynamicCache(), None
    if position_ids is not None:
        masks = {
            layer_type: _as_mask(_visible(position_ids, 0, position_ids.shape[1], window, 0), h)
            for layer_type, window in teacher.adapter.sliding_windows().items()
        }
    teacher.hidden(h, position_ids=position_ids, attention_mask=masks, cache=cache)
    return cache


def _prefix(cache: Cache, num_positions: int) -> Cache:
    """A cache of the first positions alone, to be extended without touching the original."""
    prefix = DynamicCache()
    for index, layer in enumerate(cache.layers):
        if layer.is_initialized:  # blocks below the hook have no entries
            prefix.update(layer.keys[..., :num_positions, :], layer.values[..., :num_positions, :], index)
    return prefix
