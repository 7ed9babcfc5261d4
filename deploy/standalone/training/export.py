"""Export of the trained parts: one fp16 safetensors file in the ldm layout, and its folder of configs.

The folder holds no tokenizer: that is CLIP's own, in `shared/vocabulary/clip/`.
"""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer

from deploy.standalone.training import autoencoder, ldm
from deploy.standalone.training.networks import Denoiser, clip_text_encoder, noise_schedule
from deploy.standalone.training.vocabulary import POSITIONS, TOKENIZER_DIR, Vocabulary
from deploy.standalone.training.workspace import Workspace, read

CONFIGS = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
)
WORD_TABLE = "token_embedding.weight"

log = logging.getLogger(__name__)


def export(space: Workspace, stage: str, target: Path) -> None:
    """Write the checkpoint `NAME.safetensors` of a trained stage and its `NAME.config/`."""
    pipeline = assembled(trained(space, stage), Vocabulary.of_clip(), autoencoder.load(space))
    state = single_file(pipeline)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, target, metadata={"format": "pt"})
    target.chmod(0o644)  # safetensors writes for the owner alone
    write_configs(pipeline, target.with_suffix(".config"))
    log.info("export: %d tensors, %.1f MB in %s", len(state), target.stat().st_size / 1e6, target)


def trained(space: Workspace, stage: str) -> Denoiser:
    """Load the running average of a stage's weights."""
    tensors, facts = read(space.denoiser_file(stage))
    denoiser = Denoiser(Vocabulary.of_clip(), heads=facts["heads"])
    prefix = "average."
    denoiser.load_state_dict({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
    return denoiser


def assembled(denoiser: Denoiser, vocabulary: Vocabulary, vae: Any) -> Any:
    """Return the whole checkpoint as a diffusers pipeline in fp16, with CLIP's full word table."""
    return StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=_with_all_words(denoiser.text_encoder, vocabulary).half(),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER_DIR, local_files_only=True),
        unet=denoiser.unet.half(),
        scheduler=noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def single_file(pipeline: Any) -> dict[str, Tensor]:
    """Return every tensor of the checkpoint under its ldm name."""
    state = {ldm.unet_name(name): tensor for name, tensor in pipeline.unet.state_dict().items()}
    state |= {ldm.vae_name(name): tensor for name, tensor in pipeline.vae.state_dict().items()}
    state |= {ldm.text_encoder_name(name): tensor for name, tensor in pipeline.text_encoder.state_dict().items()}
    state = {name: _in_ldm_shape(name, tensor) for name, tensor in state.items()}
    state[ldm.text_encoder_name("embeddings.position_ids")] = torch.arange(POSITIONS).unsqueeze(0)
    schedule = pipeline.scheduler
    return state | {"alphas_cumprod": schedule.alphas_cumprod.float(), "betas": schedule.betas.float()}


def write_configs(pipeline: Any, folder: Path) -> None:
    """Write the configs of a pipeline's parts, without the paths of this machine that the libraries put in."""
    with tempfile.TemporaryDirectory() as scratch:
        pipeline.save_pretrained(scratch)
        for part in CONFIGS:
            config = json.loads((Path(scratch) / part).read_text())
            config.pop("_name_or_path", None)
            path = folder / part
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(config, indent=2) + "\n")


def _with_all_words(small: Any, vocabulary: Vocabulary) -> Any:
    full = clip_text_encoder()
    full.load_state_dict(
        {k: vocabulary.spread(t) if k.endswith(WORD_TABLE) else t for k, t in small.state_dict().items()}
    )
    return full


def _in_ldm_shape(name: str, tensor: Tensor) -> Tensor:
    matrix_as_convolution = ldm.is_vae_attention_matrix(name)
    return (tensor[:, :, None, None] if matrix_as_convolution else tensor).contiguous()
