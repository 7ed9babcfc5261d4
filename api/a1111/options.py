"""A1111 options: defaults, which ones a session may set, and which ones affect a job."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from api.a1111 import names
from api.a1111.field_types import Lax, Number, Text

CHECKPOINT = "sd_model_checkpoint"
VAE = "sd_vae"
CLIP_SKIP = "CLIP_stop_at_last_layers"
# What a client that asks for no VAE of its own says.
NO_VAE = frozenset({"", "automatic", "none"})

# Ints are floats, as in the original. No key that makes clients take the server for another one.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        CHECKPOINT: "",
        "sd_checkpoint_hash": "",
        VAE: "Automatic",
        CLIP_SKIP: 1.0,
        "samples_format": "png",
        "samples_save": False,
        "grid_save": False,
        "return_grid": True,
        "enable_pnginfo": True,
        "send_seed": True,
        "inpainting_mask_weight": 1.0,
        "initial_noise_multiplier": 1.0,
        "img2img_color_correction": False,
        "img2img_fix_steps": False,
        "img2img_background_color": "#ffffff",
        "eta_noise_seed_delta": 0.0,
        "eta_ddim": 0.0,
        "eta_ancestral": 1.0,
        "ddim_discretize": "uniform",
        "face_restoration": False,
        "face_restoration_model": "CodeFormer",
        "sd_hypernetwork": "None",
        "sd_lora": "None",
        "comma_padding_backtrack": 20.0,
        "emphasis": "Original",
        "randn_source": "CPU",
        "tiling": False,
        "outdir_samples": "",
        "outdir_txt2img_samples": "",
        "outdir_img2img_samples": "",
        "outdir_extras_samples": "",
        "outdir_grids": "",
        "outdir_txt2img_grids": "",
        "outdir_img2img_grids": "",
        "outdir_save": "",
        "live_previews_enable": True,
        "show_progress_every_n_steps": 10.0,
        "upscaler_for_img2img": None,
        "hires_fix_use_firstpass_conds": False,
        "use_scale_latent_for_hires_fix": False,
    }
)
# What one session may set for itself. The others show how the farm is and keep what they say.
SETTABLE = frozenset({CHECKPOINT, VAE, CLIP_SKIP, "send_seed", "show_progress_every_n_steps", "live_previews_enable"})
_MAX_TEXT_CHARS = 300


class Chosen(Lax):
    """The options that affect a job."""

    sd_model_checkpoint: Text = ""
    sd_vae: Text = ""
    CLIP_stop_at_last_layers: Number = 1


def changes(body: Mapping[str, Any], checkpoints: names.KnownCheckpoints) -> dict[str, Any]:
    """Return the options in a body that a session may set; a checkpoint by its title. Raises `Impossible` for an unknown one.

    Unknown and read-only keys are ignored, because clients send back all the options that they received.
    """
    chosen = {name: value for name, value in body.items() if name in SETTABLE and _fits(name, value)}
    wanted = chosen.pop(CHECKPOINT, None)
    if wanted:
        found = names.checkpoint(wanted, checkpoints)
        chosen[CHECKPOINT] = names.title(found, checkpoints.sha256s[found])
    return chosen


def whole(chosen: Mapping[str, Any], checkpoints: names.KnownCheckpoints) -> dict[str, Any]:
    """Return all options as a session with these choices sees them."""
    hashes = {names.title(name, sha256): sha256 for name, sha256 in checkpoints.sha256s.items()}
    return {**DEFAULTS, "sd_checkpoint_hash": hashes.get(chosen.get(CHECKPOINT, "")) or "", **chosen}


def ignored(overrides: Mapping[str, Any]) -> list[str]:
    """Return the names of the overrides that the farm ignores."""
    return [name for name, value in overrides.items() if name not in _ACTING and DEFAULTS.get(name, _NEVER) != value]


_ACTING = frozenset({CHECKPOINT, VAE, CLIP_SKIP})
_NEVER = object()


def _fits(name: str, value: Any) -> bool:
    default = DEFAULTS[name]
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1000
    return isinstance(value, str) and len(value) <= _MAX_TEXT_CHARS and "\0" not in value
