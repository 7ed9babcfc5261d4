"""Names of weights: from diffusers' modules to the original Stable Diffusion 1.x (ldm) single-file layout.

Pure text. Holds for any width, as long as the blocks are SD1.5's; every name maps to exactly one other.
"""

import re
from collections.abc import Callable, Sequence

UNET, VAE, TEXT_ENCODER = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."

Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]


def unet_name(name: str) -> str:
    """Return ldm's name of a weight of the UNet."""
    renamed = _first(_UNET_BLOCKS, name)
    return UNET + (_first(_RESNET, renamed) if "resnets" in name else renamed)


def vae_name(name: str) -> str:
    """Return ldm's name of a weight of the VAE."""
    renamed = name
    for pattern, rename in _VAE:
        renamed = pattern.sub(rename, renamed)
    return VAE + renamed


def text_encoder_name(name: str) -> str:
    """Return ldm's name of a weight of the text encoder; transformers dropped the `text_model.` that the layout has."""
    return TEXT_ENCODER + "text_model." + name.removeprefix("text_model.")


def is_vae_attention_matrix(name: str) -> bool:
    """Whether ldm stores this weight, a matrix in diffusers, as a 1x1 convolution."""
    return ".mid.attn_1." in name and name.endswith("weight") and ".norm." not in name


def _rule(pattern: str, rename: str | Callable[[re.Match[str]], str]) -> Rule:
    return re.compile(pattern), rename if callable(rename) else lambda match: match.expand(rename)


def _first(rules: Sequence[Rule], name: str) -> str:
    """Apply the one rule that matches a name; return other names unchanged."""
    for pattern, rename in rules:
        renamed, count = pattern.subn(rename, name, count=1)
        if count:
            return renamed
    return name


def _down(match: re.Match[str]) -> str:
    block, layer = int(match[1]), int(match[3])
    return f"input_blocks.{3 * block + layer + 1}.{_slot(match[2])}."


def _up(match: re.Match[str]) -> str:
    block, layer = int(match[1]), int(match[3])
    return f"output_blocks.{3 * block + layer}.{_slot(match[2])}."


def _upsampler(match: re.Match[str]) -> str:
    block = int(match[1])
    after_attention = 1 if block == 0 else 2  # the first block has no attention
    return f"output_blocks.{3 * block + 2}.{after_attention}."


def _slot(kind: str) -> int:
    return 0 if kind == "resnets" else 1


_UNET_BLOCKS: tuple[Rule, ...] = (
    _rule(r"^time_embedding\.linear_(\d)\.", lambda m: f"time_embed.{2 * int(m[1]) - 2}."),
    _rule(r"^conv_in\.", "input_blocks.0.0."),
    _rule(r"^conv_norm_out\.", "out.0."),
    _rule(r"^conv_out\.", "out.2."),
    _rule(r"^mid_block\.attentions\.0\.", "middle_block.1."),
    _rule(r"^mid_block\.resnets\.(\d)\.", lambda m: f"middle_block.{2 * int(m[1])}."),
    _rule(r"^down_blocks\.(\d)\.(resnets|attentions)\.(\d)\.", _down),
    _rule(r"^down_blocks\.(\d)\.downsamplers\.0\.conv\.", lambda m: f"input_blocks.{3 * int(m[1]) + 3}.0.op."),
    _rule(r"^up_blocks\.(\d)\.(resnets|attentions)\.(\d)\.", _up),
    _rule(r"^up_blocks\.(\d)\.upsamplers\.0\.", _upsampler),
)
_RESNET: tuple[Rule, ...] = (
    _rule(r"\.norm1\.", ".in_layers.0."),
    _rule(r"\.conv1\.", ".in_layers.2."),
    _rule(r"\.norm2\.", ".out_layers.0."),
    _rule(r"\.conv2\.", ".out_layers.3."),
    _rule(r"\.time_emb_proj\.", ".emb_layers.1."),
    _rule(r"\.conv_shortcut\.", ".skip_connection."),
)
_VAE: tuple[Rule, ...] = (
    _rule(r"^encoder\.down_blocks\.(\d)\.resnets\.", r"encoder.down.\1.block."),
    _rule(r"^encoder\.down_blocks\.(\d)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    # ldm counts the decoder's blocks from the pixels, diffusers from the latents.
    _rule(r"^decoder\.up_blocks\.(\d)\.resnets\.", lambda m: f"decoder.up.{3 - int(m[1])}.block."),
    _rule(r"^decoder\.up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"decoder.up.{3 - int(m[1])}.upsample."),
    _rule(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}."),
    _rule(r"mid_block\.attentions\.0\.group_norm\.", "mid.attn_1.norm."),
    _rule(r"mid_block\.attentions\.0\.to_([qkv])\.", r"mid.attn_1.\1."),
    _rule(r"mid_block\.attentions\.0\.to_out\.0\.", "mid.attn_1.proj_out."),
    _rule(r"conv_shortcut", "nin_shortcut"),
    _rule(r"conv_norm_out", "norm_out"),
)
