"""A1111's names for samplers, schedules, upscalers and checkpoints, in all their historical forms."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from api.a1111.errors import Impossible, SamplerNotFound
from shared.vocabulary.params import Upscaler
from shared.vocabulary.samplers import SAMPLER_LABELS, SCHEDULE_LABELS, SCHEDULES, Sampler, Schedule

AUTOMATIC = "automatic"
NO_UPSCALER = "None"
# In the order of the original, which clients show; samplers that it lacks come last.
ALIASES: Mapping[Sampler, tuple[str, ...]] = MappingProxyType(
    {
        Sampler.DPMPP_2M: ("k_dpmpp_2m",),
        Sampler.DPMPP_SDE: ("k_dpmpp_sde",),
        Sampler.DPMPP_2M_SDE: ("k_dpmpp_2m_sde",),
        Sampler.DPMPP_3M_SDE: ("k_dpmpp_3m_sde",),
        Sampler.EULER_A: ("k_euler_a", "k_euler_ancestral"),
        Sampler.EULER: ("k_euler",),
        Sampler.LMS: ("k_lms",),
        Sampler.HEUN: ("k_heun",),
        Sampler.DPM2: ("k_dpm_2",),
        Sampler.DPM2_A: ("k_dpm_2_a",),
        Sampler.DDIM: ("ddim",),
        Sampler.PLMS: ("plms",),
        Sampler.UNIPC: ("unipc",),
        Sampler.LCM: ("k_lcm",),
        Sampler.DDPM: ("ddpm",),
        Sampler.DEIS: ("deis",),
        Sampler.TCD: ("tcd",),
    }
)
SCHEDULE_NAMES: Mapping[Schedule, str] = MappingProxyType(
    {schedule: "align_your_steps" if schedule is Schedule.AYS else schedule.value for schedule in Schedule}
)
# Known elsewhere, not here: they fall back to automatic, as unknown ones do in the original.
OTHER_SCHEDULES = ("polyexponential", "kl optimal", "kl_optimal", "normal", "turbo")
LATENT_UPSCALERS: Mapping[str, Upscaler] = MappingProxyType(
    {
        "Latent": Upscaler.LATENT,
        "Latent (antialiased)": Upscaler.LATENT_ANTIALIASED,
        "Latent (bicubic)": Upscaler.LATENT_BICUBIC,
        "Latent (bicubic antialiased)": Upscaler.LATENT_BICUBIC_ANTIALIASED,
        "Latent (nearest)": Upscaler.LATENT_NEAREST,
        "Latent (nearest-exact)": Upscaler.LATENT_NEAREST_EXACT,
    }
)
# None first: clients skip the first one.
PIXEL_UPSCALERS = (NO_UPSCALER, "Lanczos", "Nearest")
SUFFIXES = (".safetensors", ".ckpt")
HASH_CHARS = 10
_HEX = re.compile("[0-9a-f]{8,64}")
_HASH = re.compile(r"\s*\[([0-9a-f]{8,64})\]\s*$", re.IGNORECASE)

_SAMPLERS = {
    name.casefold(): sampler
    for sampler, label in SAMPLER_LABELS.items()
    for name in (label, sampler.value, *ALIASES.get(sampler, ()))
}
_SCHEDULES: dict[str, Schedule | None] = {
    **dict.fromkeys((AUTOMATIC, *OTHER_SCHEDULES)),
    **{
        name.casefold(): schedule
        for schedule, label in SCHEDULE_LABELS.items()
        for name in (label, schedule.value, SCHEDULE_NAMES[schedule], label.replace(" ", ""))
    },
}


@dataclass(frozen=True, slots=True)
class KnownCheckpoints:
    """Checkpoints by name: with their SHA-256, as far as it is known, and with the reason those that no worker can load."""

    sha256s: Mapping[str, str | None]
    refused: Mapping[str, str] = field(default_factory=dict)


def walk(sampler_name: str, scheduler: str | None) -> tuple[Sampler, Schedule | None]:
    """Return the sampler, by name, alias or with a schedule's name behind it as of old, and the schedule; None is automatic.

    What the schedule's own field says wins. A schedule that the sampler cannot walk, or that nobody knows, is automatic too.
    Raises `SamplerNotFound`.
    """
    name, schedule = _split(" ".join(sampler_name.casefold().split()))
    sampler = _SAMPLERS.get(name)
    if sampler is None:
        raise SamplerNotFound
    schedule = _SCHEDULES.get((scheduler or "").strip().casefold()) or schedule
    return sampler, schedule if schedule in SCHEDULES[sampler] else None


def is_schedule(scheduler: str, sampler: Sampler) -> bool:
    """Say whether a schedule's name is one that the sampler walks, or automatic."""
    known = _SCHEDULES.get(scheduler.strip().casefold())
    return scheduler.strip().casefold() == AUTOMATIC or known in SCHEDULES[sampler]


def _split(name: str) -> tuple[str, Schedule | None]:
    if name not in _SAMPLERS:
        for suffix, schedule in _SCHEDULES.items():
            if name.endswith(f" {suffix}"):
                return name.removesuffix(f" {suffix}"), schedule
    return name, None


def upscaler(name: str | None) -> Upscaler:
    """Return how hires fix enlarges; pixels are all enlarged by Lanczos. Raises `Impossible` for names that are not listed."""
    if not name:
        return Upscaler.LATENT
    for latent, found in LATENT_UPSCALERS.items():
        if latent.casefold() == name.casefold():
            return found
    pixel_upscaler(name)
    return Upscaler.LANCZOS


def pixel_upscaler(name: str) -> str:
    """Return an upscaler of pixels as it is listed. Raises `Impossible`."""
    for known in PIXEL_UPSCALERS:
        if known.casefold() == name.casefold():
            return known
    raise Impossible(f"could not find upscaler named {name[:100]}")


def file(weights: str) -> str:
    """Return weights as a file is called."""
    return f"{weights}{SUFFIXES[0]}"


def title(checkpoint: str, sha256: str | None) -> str:
    """Return how lists call a checkpoint."""
    return f"{file(checkpoint)} [{sha256[:HASH_CHARS]}]" if sha256 else file(checkpoint)


def checkpoint(wanted: str, known: KnownCheckpoints) -> str:
    """Return the checkpoint that a title, file name, stem or hash means. A name with another's hash is none.

    A name as it is written goes first, then one in other letters, then a hash. Raises `Impossible`, with the reason for one that
    no worker can load.
    """
    said = _HASH.search(wanted)
    plain = stem(_HASH.sub("", wanted).strip())
    found = _named(plain, said[1].lower() if said else None, known.sha256s) or _hashed(plain.casefold(), known.sha256s)
    if found is not None:
        return found
    refused = _named(plain, None, dict.fromkeys(known.refused))
    if refused is not None:
        raise Impossible(f"model {wanted[:200]!r} cannot be loaded: {known.refused[refused]}")
    if not known.sha256s:
        raise Impossible("no model can be loaded; GET /v1/checkpoints says why")
    raise Impossible(f"model {wanted[:200]!r} not found")


def _named(plain: str, said: str | None, known: Mapping[str, str | None]) -> str | None:
    """Return the checkpoint of a name, unless the hash that was said with it is another's."""
    folded = plain.casefold()
    alike = [name for name in known if stem(name).casefold() == folded]
    exact_first = sorted(alike, key=lambda name: stem(name) != plain)
    return next((name for name in exact_first if said is None or _may_be(said, known[name])), None)


def _hashed(plain: str, known: Mapping[str, str | None]) -> str | None:
    if not _HEX.fullmatch(plain):
        return None
    return next((name for name, sha256 in known.items() if sha256 and sha256.startswith(plain)), None)


def _may_be(hexadecimal: str, sha256: str | None) -> bool:
    """Say whether a hash can be that of a file; the old ones, of eight digits, were made of parts of it."""
    return sha256 is None or len(hexadecimal) < HASH_CHARS or sha256.startswith(hexadecimal)


def stem(name: str) -> str:
    """Return a weights file's name without its ending."""
    for suffix in SUFFIXES:
        if name.casefold().endswith(suffix):
            return name[: -len(suffix)]
    return name
