"""Answer of a finished call: images, echoed parameters, and `info` (JSON inside a string), with the types of A1111."""

import base64
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from api import stored_images
from api.a1111.calls import A1111Call
from api.desk import Desk
from shared.infra import previews
from shared.infra.tables import JobRow
from shared.vocabulary import infotext
from shared.vocabulary.params import GenerationParams
from shared.vocabulary.samplers import SAMPLER_LABELS
from shared.vocabulary.states import JobState

# A sheet of more pixels is left out; the pictures themselves are in the answer anyway.
MAX_SHEET_PIXELS = 16 * 2**20


@dataclass(frozen=True, slots=True)
class AnswerImage:
    """An image as PNG, and its infotext."""

    file: bytes
    text: str


def pictures(desk: Desk, call: A1111Call) -> list[AnswerImage]:
    """Fetch a call's images in order; the last previews for canceled jobs. Raises `Gone`, `Unavailable`."""
    return [shown for job in call.jobs for shown in _of(desk, job)]


def body(desk: Desk, call: A1111Call, echo: Mapping[str, Any]) -> bytes:
    """Encode the answer of a finished call as JSON. Raises `Gone`, `Unavailable`."""
    about, shown = call.row.about, pictures(desk, call)
    sheet = _sheet([one.file for one in shown]) if about["grid"] and len(shown) > 1 else None
    texts = [one.text for one in shown]
    files = [*([sheet] if sheet else []), *(one.file for one in shown)]
    answer = {
        "images": [base64.b64encode(file).decode() for file in files] if about["send_images"] else [],
        "parameters": echo,
        "info": json.dumps(info(call, texts=[*(texts[:1] if sheet else []), *texts], pictures_from=int(bool(sheet)))),
    }
    return json.dumps(answer).encode()


def info(call: A1111Call, *, texts: Sequence[str], pictures_from: int = 0) -> dict[str, Any]:
    """Return A1111's `info`. `pictures_from` is the index of the first image, 1 after a grid."""
    about, params = call.row.about, [GenerationParams.model_validate(job.params) for job in call.jobs]
    first = params[0]
    count = sum(one.num_images for one in params)
    return {
        "prompt": first.prompt,
        "all_prompts": [first.prompt] * count,
        "negative_prompt": first.negative_prompt,
        "all_negative_prompts": [first.negative_prompt] * count,
        "seed": first.seed,
        "all_seeds": [seed for one in params for seed in one.seeds],
        "subseed": about["subseed"],
        # Numbered also where they have no effect.
        "all_subseeds": [about["subseed"] + index for index in range(count)],
        # Without a variation an int, as strict clients expect.
        "subseed_strength": first.variation.strength if first.variation else 0,
        "width": first.width,
        "height": first.height,
        "sampler_name": SAMPLER_LABELS[first.sampler],
        "cfg_scale": first.guidance_scale,
        "steps": first.steps,
        "batch_size": about["batch_size"],
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": first.checkpoint,
        "sd_model_hash": about["checkpoint_hash"],
        "sd_vae_name": first.vae,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": first.hires.strength if first.hires else first.strength,
        "extra_generation_params": infotext.extras(first),
        "index_of_first_image": pictures_from,
        "infotexts": list(texts),
        "styles": about["styles"],
        "job_timestamp": stamp(call.row.created_at),
        "clip_skip": first.clip_skip,
        "is_using_inpainting_conditioning": False,
        "version": infotext.VERSION,
    }


def stamp(moment: datetime) -> str:
    """Format a time as A1111's `job_timestamp`."""
    return moment.strftime("%Y%m%d%H%M%S")


def _of(desk: Desk, job: JobRow) -> Iterator[AnswerImage]:
    params = GenerationParams.model_validate(job.params)
    if job.state == JobState.SUCCEEDED:
        for image in job.images:
            file = stored_images.fetch(desk, image)
            yield AnswerImage(file, _text(file))
    elif job.state == JobState.CANCELED:
        for index in range(params.num_images):
            preview = previews.get(desk.redis, job.id, index)
            if preview is not None:
                yield _unfinished(preview, params, infotext.encode(params, index))


def _text(file: bytes) -> str:
    """Read the infotext of a finished image, which comes before its pixels."""
    with Image.open(io.BytesIO(file)) as picture:
        return str(picture.info["parameters"])


def _unfinished(preview: bytes, params: GenerationParams, text: str) -> AnswerImage:
    """Enlarge a preview to the size of the image and encode it as PNG."""
    with Image.open(io.BytesIO(preview)) as small:
        large = small.convert("RGB").resize((params.width, params.height), Image.Resampling.BICUBIC)
    return AnswerImage(to_png(large, {"parameters": text}), text)


def to_png(picture: Image.Image, texts: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """Encode a picture as PNG, with text chunks by keyword."""
    chunks = PngInfo()
    for keyword, text in texts.items():
        chunks.add_itxt(keyword, text)
    out = io.BytesIO()
    picture.save(out, format="PNG", compress_level=1, pnginfo=chunks)
    return out.getvalue()


def _sheet(files: Sequence[bytes]) -> bytes | None:
    """Draw A1111's grid of all images, nearly square; None above `MAX_SHEET_PIXELS`."""
    rows = round(math.sqrt(len(files)))
    columns = math.ceil(len(files) / rows)
    with Image.open(io.BytesIO(files[0])) as first:
        width, height = first.size
    if rows * columns * width * height > MAX_SHEET_PIXELS:
        return None
    sheet = Image.new("RGB", (columns * width, rows * height))
    for index, file in enumerate(files):
        with Image.open(io.BytesIO(file)) as picture:
            sheet.paste(picture, (index % columns * width, index // columns * height))
    return to_png(sheet)
