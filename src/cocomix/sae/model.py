"""The sparse autoencoder: a dictionary of the teacher's residual stream, in one form for every file format.

    x = (h - mean) / (scale + eps)               see `SparseAutoencoderConfig.normalize_input`
    c = activation(W_enc (x - b_dec) + b_enc)    b_dec only with `subtract_decoder_bias`
    h_hat = (W_dec^T c + b_dec) * scale + mean   plus W_skip h with `skip_connection`

Both matrices are stored as one row a latent, [C, D]. Latents come and go as (indices, values) of the active ones; nothing
of size [N, C] is kept. `cocomix.sae.formats` reads and writes the files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from cocomix.base.devices import plain_products, rounded_dtype
from cocomix.base.errors import CocomixError
from cocomix.sae import formats
from cocomix.sae.config import SparseAutoencoderConfig as SparseAutoencoderConfig

# Shapes: N tokens (any leading dimensions), n tokens of a chunk, D width of the teacher, C latents, K active latents.

STD_EPSILON = 1e-5
#: Elements of one chunk's pre-activations: 64 MB in float32.
CHUNK_ELEMENTS = 2**24


@dataclass(frozen=True)
class Latents:
    """Active latents of some tokens, and what turns them into a reconstruction: d h_hat / d c_i = std * W_dec[i].

    Where the number of active latents varies, K is the largest of the batch. A token's unused slots have value 0, and
    none of them names a latent that is active elsewhere in the same token.
    """

    indices: Int64[Tensor, "*N K"]
    values: Float[Tensor, "*N K"]
    mean: Float[Tensor, "*N _"]
    """What is added last: the token's mean, [*N, 1], or with a skip connection a vector, [*N, D]."""
    std: Float[Tensor, "*N 1"]
    """The scale that normalisation took from the token; 1 without normalisation."""

    def padded(self, num_slots: int) -> Latents:
        """The same latents with at least `num_slots` slots; added ones have value 0 and repeat the last one's index."""
        indices, values = _pad(self.indices, self.values, max(num_slots, self.indices.shape[-1]))
        return Latents(indices, values, self.mean, self.std)


class SparseAutoencoder(nn.Module):
    """A sparse autoencoder.

    Args:
        config: see `SparseAutoencoderConfig`.
    """

    threshold: Tensor | None

    def __init__(self, config: SparseAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        C, D = config.num_latents, config.hidden_size
        self.encoder_weight = nn.Parameter(torch.empty(C, D))
        self.encoder_bias = nn.Parameter(torch.zeros(C))
        self.decoder_weight = nn.Parameter(torch.empty(C, D))
        self.decoder_bias = nn.Parameter(torch.zeros(D))
        self.skip_weight = nn.Parameter(torch.zeros(D, D)) if config.skip_connection else None
        if config.activation == "jumprelu":
            self.threshold = nn.Parameter(torch.zeros(C))
        else:
            self.register_buffer("threshold", torch.zeros(()) if config.activation == "batchtopk" else None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Random unit directions, with the encoder equal to the decoder (Gao et al., arXiv 2406.04093, appendix A)."""
        nn.init.normal_(self.decoder_weight)
        self.normalize_decoder()
        self.encoder_weight.copy_(self.decoder_weight)

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        self.decoder_weight.copy_(F.normalize(self.decoder_weight, dim=-1))

    @torch.no_grad()
    def fold_input_scale(self, factor: float) -> None:
        """Make this the dictionary that first multiplies its input by `factor`, and divides its output by it."""
        if self.config.normalize_input != "none":
            raise CocomixError(
                f"a factor on the input of a dictionary with normalize_input {self.config.normalize_input!r} has no effect"
            )
        self.load_state_dict(formats.with_input_scale(self.state_dict(), factor))

    def normalize(self, h: Float[Tensor, "*N D"]) -> tuple[Tensor, Tensor, Tensor]:
        """x, mean and scale of residual streams; without normalisation the mean is 0 and the scale 1."""
        zero = torch.zeros_like(h[..., :1])
        if self.config.normalize_input == "layer_norm":
            mean, std = h.mean(-1, keepdim=True), h.std(-1, keepdim=True)
            # OpenAI's dictionaries and SAELens's divide by std + eps and multiply by std.
            return (h - mean) / (std + STD_EPSILON), mean, std
        if self.config.normalize_input == "constant_norm_rescale":
            scale = h.norm(dim=-1, keepdim=True) / h.shape[-1] ** 0.5
            return h / scale, zero, scale
        return h, zero, zero + 1.0

    def encoder_input(self, h: Float[Tensor, "*N D"]) -> tuple[Tensor, Tensor, Tensor]:
        """What the encoder's matrix is multiplied with, and mean and scale as in `normalize`."""
        x, mean, std = self.normalize(h)
        return (x - self.decoder_bias if self.config.subtract_decoder_bias else x), mean, std

    def encode(self, h: Float[Tensor, "*N D"]) -> Latents:
        """The active latents of residual streams, largest first (`abstopk`: in size; `groupmax`: in the groups' order)."""
        x, mean, std = self.encoder_input(h)
        if self.skip_weight is not None:
            mean = mean + F.linear(h, self.skip_weight)
        num_rows = max(1, CHUNK_ELEMENTS // self.config.num_latents)
        weight = self._weight_of_products()
        chunks = [self._active_latents(rows, weight) for rows in x.reshape(-1, h.shape[-1]).split(num_rows)]
        K = max(num_active for _, _, num_active in chunks)
        padded = [_pad(indices, values, K) for indices, values, _ in chunks]
        shape = (*h.shape[:-1], K)
        indices, values = (torch.cat([part[i][:, :K] for part in padded]).view(shape) for i in (0, 1))
        return Latents(indices, values, mean, std)

    def decode(self, latents: Latents) -> Float[Tensor, "*N D"]:
        """Residual streams from active latents."""
        K = latents.indices.shape[-1]
        x = self.sum_rows(latents.indices.reshape(-1, K), latents.values.reshape(-1, K))
        return (x.view(*latents.indices.shape[:-1], -1) + self.decoder_bias) * latents.std + latents.mean

    def sum_rows(
        self, indices: Int64[Tensor, "*M"], values: Float[Tensor, "*M"], offsets: Int64[Tensor, " N"] | None = None
    ) -> Float[Tensor, "N D"]:
        """W_dec^T c: the decoder's rows of the active latents, weighted and added.

        Args:
            indices: [N, K]; or those of all tokens one after another.
            values: of the same shape.
            offsets: where each token's latents begin in those of all tokens.
        """
        return F.embedding_bag(indices, self.decoder_weight, offsets, per_sample_weights=values, mode="sum")

    def forward(self, h: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        return self.decode(self.encode(h))

    def _weight_of_products(self) -> Tensor:
        """The encoder's matrix, under autocast rounded to its dtype where that only preselects latents.

        Where thresholds decide how many latents are active, or a graph is recorded, the product stays as it is.
        """
        preselects = self.config.activation in ("topk", "abstopk") and not torch.is_grad_enabled()
        dtype = rounded_dtype(self.encoder_weight.device) if preselects else None
        return self.encoder_weight if dtype is None else self.encoder_weight.to(dtype)

    @torch.no_grad()
    def kept(
        self,
        h: Float[Tensor, "B T D"],
        input_ids: Int64[Tensor, "B T"],
        position_ids: Int64[Tensor, "#B T"] | None = None,
    ) -> Bool[Tensor, "B T"]:
        """Where the dictionary applies: False at positions that it leaves out.

        Args:
            h: residual streams of whole windows.
            input_ids: their tokens.
            position_ids: positions that restart at 0 in each isolated document; None: a window is one text.
        """
        rule = self.config.excluded
        kept = torch.ones_like(input_ids, dtype=torch.bool)
        if rule.first:
            positions = torch.arange(h.shape[1], device=h.device) if position_ids is None else position_ids
            kept &= positions != 0
        if rule.tokens:
            kept &= ~torch.isin(input_ids, torch.tensor(rule.tokens, device=input_ids.device))
        if rule.max_norm is not None:
            kept &= ~(h.float().norm(dim=-1) > rule.max_norm)  # what is no number is not hidden
        return kept

    def read(
        self,
        h: Float[Tensor, "B T D"],
        input_ids: Int64[Tensor, "B T"],
        position_ids: Int64[Tensor, "#B T"] | None = None,
    ) -> Latents:
        """The latents of whole windows, of value 0 at positions that the dictionary leaves out; arguments as of `kept`."""
        latents, kept = self.encode(h), self.kept(h, input_ids, position_ids)
        return replace(latents, values=latents.values.masked_fill(~kept.unsqueeze(-1), 0))

    def _active_latents(self, x: Float[Tensor, "n D"], weight: Float[Tensor, "C D"]) -> tuple[Tensor, Tensor, int]:
        """Indices and values of a chunk's active latents, and the largest number of them at one token, at least 1.

        Choosing before indexing keeps any [n, C] tensor out of the graph, if one is recorded.
        """
        if weight.dtype != self.encoder_weight.dtype:
            return self._preselected_latents(x, weight)
        with plain_products(x.device):
            z = torch.addmm(self.encoder_bias, x, weight.t())  # (n, C)
        with torch.no_grad():
            indices, num_active = self._choose(z)
        # Not `gather`, which would keep z for its backward.
        values = z[torch.arange(len(z), device=z.device).unsqueeze(-1), indices]
        if self.config.activation != "abstopk":
            values = values.relu()
        if self.threshold is not None:
            threshold = self.threshold[indices] if self.threshold.ndim else self.threshold
            values = values.masked_fill(values <= threshold, 0)
        return indices, values, num_active

    def _preselected_latents(self, x: Float[Tensor, "n D"], weight: Tensor) -> tuple[Tensor, Tensor, int]:
        """`_active_latents` of the K largest: 2K by the rounded product, then exact values of these, and their order."""
        K, takes_signs = self.config.max_active_latents, self.config.activation == "abstopk"
        z = torch.addmm(self.encoder_bias, x, weight.t())  # (n, C)
        among = (z.abs() if takes_signs else z).topk(min(2 * K, z.shape[-1]), dim=-1).indices
        exact = row_products(self.encoder_weight, among, x) + self.encoder_bias[among]
        order = (exact.abs() if takes_signs else exact).topk(K, dim=-1).indices
        values = exact.gather(-1, order)
        return among.gather(-1, order), values if takes_signs else values.relu(), K

    def _choose(self, z: Float[Tensor, "n C"]) -> tuple[Int64[Tensor, "n K"], int]:
        K = self.config.num_active_latents
        if self.config.activation in ("topk", "abstopk"):
            assert K is not None
            return (z if self.config.activation == "topk" else z.abs()).topk(K, dim=-1).indices, K
        if self.config.activation == "groupmax":
            assert K is not None
            groups = z.unflatten(-1, (K, -1))
            return groups.argmax(-1) + torch.arange(K, device=z.device) * groups.shape[-1], K
        active = z.relu()
        if self.threshold is not None:
            active.masked_fill_(active <= self.threshold, 0)
        num_active = max(1, int((active > 0).sum(-1).max())) if len(z) else 1
        # One slot more than needed is unused at every token, and says which index padding can repeat.
        return active.topk(min(num_active + 1, z.shape[-1]), dim=-1).indices, num_active

    def save_pretrained(self, folder: Path, format: str = "own") -> None:
        """Write the dictionary into a folder.

        Args:
            folder: made if it does not exist.
            format: `own` (`sae.json` and `sae.safetensors`) or `saelens` (version 6, for use with that library).

        Raises:
            CocomixError: the dictionary can't be expressed in that format.
        """
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        formats.write(Path(folder), format, self.config, tensors)

    @classmethod
    def from_pretrained(
        cls, path: Path | str, format: str | None = None, *, allow_square: bool = False
    ) -> SparseAutoencoder:
        """Load a dictionary of any format of `formats.FORMATS`, frozen, in float32 (float64 where the file is).

        Args:
            path: a folder or file; where none exists, `organisation/repository` of the Hugging Face Hub or
                `organisation/repository/path/in/it`.
            format: its name; by default recognised from the files.
            allow_square: load a foreign dictionary with as many latents as inputs, whose shapes can't tell an encoder's
                matrix from its transpose.

        Raises:
            CocomixError: a file is missing, damaged, or not what it should be; the message names it.
        """
        config, tensors = formats.read(path, format, allow_square=allow_square)
        with torch.device("meta"):  # no memory and no random numbers for weights that are overwritten at once
            sae = cls(config)
        sae.to(tensors["encoder_weight"].dtype).to_empty(device="cpu")
        sae.load_state_dict(tensors)
        return sae.eval().requires_grad_(False)


def row_products(
    weight: Float[Tensor, "C D"], indices: Int64[Tensor, "n K"], x: Float[Tensor, "n D"]
) -> Float[Tensor, "n K"]:
    """weight[indices] @ x of each row in the weight's dtype, without a graph and without gathering [n, K, D]."""
    factors = torch.ones(indices.shape, dtype=weight.dtype, device=x.device, requires_grad=True)
    with torch.enable_grad():
        total = F.embedding_bag(indices, weight.detach(), per_sample_weights=factors, mode="sum")
    return torch.autograd.grad(total, factors, x)[0]  # each row's share in the sum, times x


def _pad(indices: Tensor, values: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Slots of value 0 at the end, naming the last slot's latent once more."""
    num_missing = num_slots - indices.shape[-1]
    if num_missing <= 0:
        return indices, values
    repeated = indices[..., -1:].expand(*indices.shape[:-1], num_missing)
    return torch.cat([indices, repeated], dim=-1), F.pad(values, (0, num_missing))
