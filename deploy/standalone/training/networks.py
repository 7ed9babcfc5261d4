"""Architecture of the demo checkpoint: SD1.5's three networks and noise schedule at small sizes, untrained."""

from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from deploy.standalone.training.vocabulary import CLIP_BEGIN, CLIP_END, CLIP_TOKENS, POSITIONS, Vocabulary

WIDTH = 48  # of the text encoder and of what cross-attention reads
LATENT_SCALE = 0.18215  # what SD1.5 multiplies latents with
NOISE_LEVELS = 1000
SOME_KEYS, MORE_KEYS = (1024, 512), (4096, 768)  # from that many positions on, self-attention sees so many keys


class Denoiser(nn.Module):
    """Text encoder, on the small word table, and UNet, which are trained together."""

    def __init__(self, vocabulary: Vocabulary, *, heads: int) -> None:
        super().__init__()
        self.text_encoder = text_encoder(vocabulary)
        self.unet = unet(heads)

    def forward(self, latents: Tensor, levels: Tensor, rows: Tensor) -> Tensor:
        """Predict the noise in latents at their noise levels, given captions."""
        context = self.text_encoder(input_ids=rows).last_hidden_state.expand(len(latents), -1, -1)
        predicted: Tensor = self.unet(latents, levels, context).sample
        return predicted.float()


class SampledAttention:
    """Attention that saves time in training: over many positions, self-attention uses a random subset of the keys."""

    def __call__(
        self, attention: Any, hidden: Tensor, encoder_hidden_states: Tensor | None = None, **_unused: Any
    ) -> Tensor:
        """Attend as diffusers' attention processors do."""
        context = sampled_keys(hidden) if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            self._by_head(projected, attention.heads)
            for projected in (attention.to_q(hidden), attention.to_k(context), attention.to_v(context))
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = attention.to_out[0](mixed.transpose(1, 2).flatten(2))
        return out

    @staticmethod
    def _by_head(projected: Tensor, heads: int) -> Tensor:
        return projected.view(*projected.shape[:2], heads, -1).transpose(1, 2)


def sampled_keys(hidden: Tensor) -> Tensor:
    """Return a random subset of many positions, or all of few."""
    positions = hidden.shape[1]
    if positions < SOME_KEYS[0]:
        return hidden
    count = MORE_KEYS[1] if positions >= MORE_KEYS[0] else SOME_KEYS[1]
    return hidden[:, torch.randperm(positions, device=hidden.device)[:count]]


def text_encoder(vocabulary: Vocabulary) -> Any:
    """Make the text encoder with the small word table of training."""
    return CLIPTextModel(
        _text_config(
            vocab_size=vocabulary.size,
            bos_token_id=vocabulary.begin,
            eos_token_id=vocabulary.end,
            pad_token_id=vocabulary.end,
        )
    )


def clip_text_encoder() -> Any:
    """Make the text encoder with CLIP's full word table, as it is published."""
    return CLIPTextModel(
        _text_config(vocab_size=CLIP_TOKENS, bos_token_id=CLIP_BEGIN, eos_token_id=CLIP_END, pad_token_id=1)
    )


def unet(heads: int) -> Any:
    """Make the UNet. The key that SD1.5's configs call `attention_head_dim` is the number of heads."""
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=(32, 48, 64, 64),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=WIDTH,
        attention_head_dim=heads,
        norm_num_groups=16,
    )


def autoencoder() -> Any:
    """Make the VAE. Its two attentions are there, as the file layout wants them, but add zero: it works the same at any size."""
    vae: Any = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 16, 32, 32),
        layers_per_block=2,
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=512,
        scaling_factor=LATENT_SCALE,
    )
    for half in (vae.encoder, vae.decoder):
        attention = half.mid_block.attentions[0].requires_grad_(False)
        nn.init.zeros_(attention.to_out[0].weight)
        nn.init.zeros_(attention.to_out[0].bias)
    return vae


def noise_schedule() -> Any:
    """Make SD1.5's noise schedule: scaled linear, with PNDM as the default sampler."""
    return PNDMScheduler(
        num_train_timesteps=NOISE_LEVELS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _text_config(**vocabulary: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        hidden_act="quick_gelu",
        projection_dim=WIDTH,
        **vocabulary,
    )
