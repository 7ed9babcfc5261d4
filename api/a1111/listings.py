"""Listing routes: checkpoints, samplers, LoRAs and other names to choose from, and facts about the server."""

import os
from typing import Any

from api.a1111 import names, sessions, styles
from api.callers import Reader
from api.desk import Desk, DeskDep
from api.routing import Router
from shared.files.weights import Kind
from shared.fleet import registry
from shared.vocabulary.samplers import SAMPLER_LABELS, SCHEDULE_LABELS, SCHEDULES, TWO_CALLS_A_STEP, Sampler, Schedule

router = Router(prefix="/sdapi/v1")

SD15_WIDTH = 768
# Their noise levels come from the checkpoint itself.
_NEED_CHECKPOINT = frozenset({Schedule.UNIFORM, Schedule.SGM_UNIFORM, Schedule.SIMPLE, Schedule.BETA})


@router.get("/sd-models", summary="List checkpoints")
def sd_models(desk: DeskDep, _caller: Reader) -> list[dict[str, Any]]:
    """List the checkpoints of the farm, the default one first."""
    with desk.db.transaction() as transaction:
        checkpoints = sessions.checkpoints(transaction, desk)
    return [
        {
            "title": names.title(name, sha256),
            "model_name": name,
            "hash": sha256[: names.HASH_CHARS] if sha256 else None,
            "sha256": sha256,
            "filename": names.file(name),
            "config": None,
        }
        for name, sha256 in checkpoints.sha256s.items()
    ]


@router.get("/samplers", summary="List samplers")
async def samplers(_caller: Reader) -> list[dict[str, Any]]:
    """List the samplers of the farm."""
    return [
        {"name": SAMPLER_LABELS[sampler], "aliases": list(aliases), "options": _sampler_options(sampler)}
        for sampler, aliases in names.ALIASES.items()
    ]


@router.get("/schedulers", summary="List schedules")
async def schedulers(_caller: Reader) -> list[dict[str, Any]]:
    """List the schedules of the farm, after `automatic`."""
    automatic = {"name": names.AUTOMATIC, "label": "Automatic", "aliases": None, "default_rho": -1.0}
    return [
        {**automatic, "need_inner_model": False},
        *(
            {
                "name": names.SCHEDULE_NAMES[schedule],
                "label": label,
                "aliases": ["SGMUniform"] if schedule is Schedule.SGM_UNIFORM else None,
                "default_rho": 7.0 if schedule is Schedule.KARRAS else -1.0,
                "need_inner_model": schedule in _NEED_CHECKPOINT,
            }
            for schedule, label in SCHEDULE_LABELS.items()
        ),
    ]


@router.get("/upscalers", summary="List upscalers")
async def upscalers(_caller: Reader) -> list[dict[str, Any]]:
    """List the pixel upscalers, `None` first."""
    nothing = {"model_name": None, "model_path": None, "model_url": None}
    return [{"name": name, **nothing, "scale": 4.0} for name in names.PIXEL_UPSCALERS]


@router.get("/latent-upscale-modes", summary="List latent upscale modes")
async def latent_upscale_modes(_caller: Reader) -> list[dict[str, str]]:
    """List the latent upscalers of hires fix."""
    return [{"name": name} for name in names.LATENT_UPSCALERS]


@router.get("/sd-vae", summary="List VAEs")
def sd_vae(desk: DeskDep, _caller: Reader) -> list[dict[str, str]]:
    """List the VAEs of the farm."""
    return [{"model_name": names.file(name), "filename": names.file(name)} for name, _ in _weights(desk, Kind.VAE)]


@router.get("/loras", summary="List LoRAs")
def loras(desk: DeskDep, _caller: Reader) -> list[dict[str, Any]]:
    """List the LoRAs of the farm."""
    return [
        {"name": name, "alias": alias or name, "path": names.file(name), "metadata": {}}
        for name, alias in _weights(desk, Kind.LORA)
    ]


@router.get("/embeddings", summary="List embeddings")
def embeddings(desk: DeskDep, _caller: Reader) -> dict[str, Any]:
    """List the textual-inversion embeddings of the farm."""
    what = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": SD15_WIDTH, "vectors": 1}
    return {"loaded": {name: what for name, _ in _weights(desk, Kind.EMBEDDING)}, "skipped": {}}


@router.get("/prompt-styles", summary="List prompt styles")
def prompt_styles(desk: DeskDep, _caller: Reader) -> list[dict[str, str]]:
    """List the prompt styles of `FARM_STYLES_FILE`."""
    available = styles.read(desk.settings.styles_file).values()
    return [{"name": one.name, "prompt": one.prompt, "negative_prompt": one.negative_prompt} for one in available]


@router.get("/scripts", summary="List scripts")
async def scripts(_caller: Reader) -> dict[str, list[str]]:
    """Answer with empty lists: the farm has no scripts."""
    return {"txt2img": [], "img2img": []}


@router.get("/hypernetworks", summary="Empty list")
@router.get("/face-restorers", summary="Empty list")
@router.get("/realesrgan-models", summary="Empty list")
@router.get("/script-info", summary="Empty list")
@router.get("/extensions", summary="Empty list")
@router.get("/sd-modules", summary="Empty list")
async def nothing(_caller: Reader) -> list[Any]:
    """Answer with an empty list: the farm has none of these."""
    return []


@router.get("/cmd-flags", summary="Show command line flags")
async def cmd_flags(_caller: Reader) -> dict[str, Any]:
    """Show the flags that clients look for; no secrets."""
    return {"api": True, "nowebui": True, "api_auth": None, "gradio_auth": None, "listen": True, "port": None}


@router.get("/memory", summary="Show memory")
async def memory(_caller: Reader) -> dict[str, Any]:
    """Show the memory of the api's machine. GPU figures are zero: the GPUs are in other machines."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    unknown = {"current": 0, "peak": 0}
    return {
        "ram": {"free": free, "used": total - free, "total": total},
        "cuda": {
            "system": {"free": 0, "used": 0, "total": 0},
            **dict.fromkeys(("active", "allocated", "reserved", "inactive"), unknown),
            "events": {"retries": 0, "oom": 0},
        },
    }


def _sampler_options(sampler: Sampler) -> dict[str, str]:
    default = SCHEDULES[sampler][0]
    options = {} if default is Schedule.UNIFORM else {"scheduler": names.SCHEDULE_NAMES[default]}
    return {**options, "second_order": "True"} if sampler in TWO_CALLS_A_STEP else options


def _weights(desk: Desk, kind: Kind) -> list[tuple[str, str | None]]:
    with desk.db.transaction() as transaction:
        rows = registry.weights(transaction, kind, silent_after_s=desk.settings.lease_seconds)
        return [(row.name, row.alias) for row in rows]
