"""The sparse autoencoder: a TopK dictionary of the teacher's residual stream (Gao et al., arXiv 2406.04093).

    x = (h - mean) / (std + eps)   per token, unbiased std; only with `normalize_input`
    c = ReLU(TopK(W_enc (x - b_dec) + b_enc))
    h_hat = (W_dec^T c + b_dec) * std + mean

Both matrices are stored as one row a latent, [C, D]. Latents come and go as (indices, values) of the k active ones;
nothing of size [N, C] is kept.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from cocomix.base.artifacts import read_json, write_json
from cocomix.base.errors import CocomixError
from cocomix.modeling.concept_head import predict_concepts

# Shapes: N tokens (any leading dimensions), D width of the teacher, C latents, K active latents.

CONFIG_NAME = "sae.json"
WEIGHTS_NAME = "sae.safetensors"
STD_EPSILON = 1e-5


@dataclass(frozen=True)
class SparseAutoencoderConfig:
    """Shape and input normalisation of a dictionary."""

    hidden_size: int
    """D, width of the teacher's residual stream."""
    num_latents: int
    """C, size of the dictionary."""
    num_active_latents: int
    """K, latents kept for a token."""
    normalize_input: bool = True
    """Remove each token's mean and scale before encoding, and put them back after decoding."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_active_latents <= self.num_latents:
            raise CocomixError(
                f"num_active_latents is {self.num_active_latents}; it must lie between 1 and num_latents ({self.num_latents})"
            )


@dataclass(frozen=True)
class Latents:
    """Active latents of some tokens, and the scale that normalisation took from them."""

    indices: Int64[Tensor, "*N K"]
    values: Float[Tensor, "*N K"]
    mean: Float[Tensor, "*N 1"]
    std: Float[Tensor, "*N 1"]


class SparseAutoencoder(nn.Module):
    """A TopK sparse autoencoder.

    Args:
        config: see `SparseAutoencoderConfig`.
    """

    def __init__(self, config: SparseAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        C, D = config.num_latents, config.hidden_size
        self.encoder_weight = nn.Parameter(torch.empty(C, D))
        self.encoder_bias = nn.Parameter(torch.zeros(C))
        self.decoder_weight = nn.Parameter(torch.empty(C, D))
        self.decoder_bias = nn.Parameter(torch.zeros(D))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Random unit directions, with the encoder equal to the decoder (Gao et al., appendix A)."""
        nn.init.normal_(self.decoder_weight)
        self.normalize_decoder()
        self.encoder_weight.copy_(self.decoder_weight)

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        self.decoder_weight.copy_(F.normalize(self.decoder_weight, dim=-1))

    def normalize(self, h: Float[Tensor, "*N D"]) -> tuple[Tensor, Tensor, Tensor]:
        """x, mean and scale of residual streams; without normalisation the mean is 0 and the scale 1."""
        if not self.config.normalize_input:
            zero = torch.zeros_like(h[..., :1])
            return h, zero, zero + 1.0
        mean = h.mean(-1, keepdim=True)
        std = h.std(-1, keepdim=True) + STD_EPSILON
        return (h - mean) / std, mean, std

    def encode(self, h: Float[Tensor, "*N D"]) -> Latents:
        """The active latents of residual streams."""
        x, mean, std = self.normalize(h)
        rows = (x - self.decoder_bias).reshape(-1, h.shape[-1])
        values, indices, _ = predict_concepts(
            rows, self.encoder_weight, self.encoder_bias, self.config.num_active_latents
        )
        shape = (*h.shape[:-1], self.config.num_active_latents)
        return Latents(indices.view(shape), values.relu().view(shape), mean, std)

    def decode(self, latents: Latents) -> Float[Tensor, "*N D"]:
        """Residual streams from active latents."""
        K = latents.indices.shape[-1]
        x = self.sum_rows(latents.indices.reshape(-1, K), latents.values.reshape(-1, K))
        return (x.view(*latents.indices.shape[:-1], -1) + self.decoder_bias) * latents.std + latents.mean

    def sum_rows(self, indices: Int64[Tensor, "N K"], values: Float[Tensor, "N K"]) -> Float[Tensor, "N D"]:
        """W_dec^T c: the decoder's rows of the active latents, weighted and added."""
        return F.embedding_bag(indices, self.decoder_weight, per_sample_weights=values, mode="sum")

    def forward(self, h: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        return self.decode(self.encode(h))

    def save_pretrained(self, folder: Path) -> None:
        """Write `sae.json` and `sae.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / WEIGHTS_NAME)
        write_json(folder / CONFIG_NAME, asdict(self.config))

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> SparseAutoencoder:
        """Load what `save_pretrained` wrote.

        Raises:
            CocomixError: a file is missing or not what it should be; the message names it.
        """
        folder = Path(folder)
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            if not (folder / name).exists():
                raise CocomixError(f"{folder} has no {name}; expected a sparse autoencoder saved by cocomix")
        try:
            sae = cls(SparseAutoencoderConfig(**read_json(folder / CONFIG_NAME)))
            sae.load_state_dict(load_file(folder / WEIGHTS_NAME))
        except TypeError as error:
            raise CocomixError(f"{folder / CONFIG_NAME} has unknown or missing settings: {error}") from error
        except (SafetensorError, RuntimeError) as error:
            raise CocomixError(f"{folder / WEIGHTS_NAME} does not fit its configuration: {error}") from error
        return sae.eval().requires_grad_(False)
