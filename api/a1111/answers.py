"""Answer of a finished call: images, echoed parameters, and `info` (JSON inside a string), with the types of A1111.

It is made while it is sent, one image at a time: 64 of the largest would fill the memory of an api.
"""

import base64
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from api import stored_images
from api.a1111.calls import A1111Call
from api.desk import Desk
from api.large_answers import LargeAnswer
from shared.infra import previews
from shared.infra.tables import ImageRow, JobRow
from shared.vocabulary import infotext
from shared.vocabulary.params import GenerationParams
from shared.vocabulary.samplers import SAMPLER_LABELS
from shared.vocabulary.states import JobState

# A sheet of more pixels is left out; the pictures themselves are in the answer anyway.
MAX_SHEET_PIXELS = 16 * 2**20
_PIXEL_BYTES = 3
_SLICE_BYTES = 3 * 2**16  # a multiple of three: base64 of the slices is that of the whole


@dataclass(frozen=True, slots=True)
class AnswerImage:
    """An image as PNG, and its infotext."""

    file: bytes
    text: str


@dataclass(frozen=True, slots=True)
class CallImage:
    """An image of a call that is still to be fetched, or to be made of a preview."""

    fetch: Callable[[], AnswerImage]
    pixels: tuple[int, int]
    file_bytes: int


def sources(desk: Desk, call: A1111Call) -> list[CallImage]:
    """List a call's images in order; the last previews of canceled jobs. Raises `BrokerUnavailable`."""
    return [source for job in call.jobs for source in _of(desk, job)]


def needs_bytes(found: Sequence[CallImage], *, copies: int = 2) -> int:
    """Return the memory that passing images on takes, one after another."""
    return copies * max((one.file_bytes for one in found), default=0)


def whole(desk: Desk, call: A1111Call, echo: bytes, naming: Mapping[str, str]) -> LargeAnswer:
    """Answer a finished call, with its request as JSON and the headers that name it. Raises `BrokerUnavailable`."""
    found = sources(desk, call)
    has_sheet = bool(call.row.about["grid"]) and len(found) > 1 and _fits_on_a_sheet(found)
    needed = needs_bytes(found)
    if has_sheet:
        needed = sum(one.file_bytes for one in found) + 2 * _PIXEL_BYTES * _sheet_pixels(found)
    pieces = _pieces(call, found, echo, has_sheet=has_sheet)
    return LargeAnswer(pieces, needs_bytes=needed, media_type="application/json", naming=naming)


def encoded(file: bytes) -> Iterator[bytes]:
    """Yield a file in base64."""
    for at in range(0, len(file), _SLICE_BYTES):
        yield base64.b64encode(file[at : at + _SLICE_BYTES])


def _pieces(call: A1111Call, found: Sequence[CallImage], echo: bytes, *, has_sheet: bool) -> Iterator[bytes]:
    texts: list[str] = []
    before = b'{"images": ['  # not sent before the first image is there: that it is gone is a status
    for shown in _shown(found, has_sheet=has_sheet):
        texts.append(shown.text)
        if call.row.about["send_images"]:
            yield before + b'"'
            yield from encoded(shown.file)
            before = b'", '
    about = json.dumps(json.dumps(info(call, texts=texts, pictures_from=int(has_sheet))))
    yield b'"' if before == b'", ' else before
    yield b'], "parameters": ' + echo + b', "info": ' + about.encode() + b"}"


def _shown(found: Sequence[CallImage], *, has_sheet: bool) -> Iterator[AnswerImage]:
    """Yield the images, the sheet before them; it has the text of the first."""
    if not has_sheet:
        yield from (one.fetch() for one in found)
        return
    fetched = [one.fetch() for one in found]
    yield AnswerImage(_sheet([one.file for one in fetched]), fetched[0].text)
    yield from fetched


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
        "extra_generation_params": infotext.extras(first, _hires_digest(first, about)),
        "index_of_first_image": pictures_from,
        "infotexts": list(texts),
        "styles": about["styles"],
        "job_timestamp": stamp(call.row.created_at),
        "clip_skip": first.clip_skip,
        "is_using_inpainting_conditioning": False,
        "version": infotext.VERSION,
    }


def _hires_digest(params: GenerationParams, about: Mapping[str, Any]) -> infotext.Digests:
    """Return the hash of the second pass's own checkpoint; calls of earlier releases have none."""
    own = params.hires.checkpoint if params.hires else None
    return {own: about.get("hires_checkpoint_hash")} if own else {}


def stamp(moment: datetime) -> str:
    """Format a time as A1111's `job_timestamp`."""
    return moment.strftime("%Y%m%d%H%M%S")


def _of(desk: Desk, job: JobRow) -> Iterator[CallImage]:
    params = GenerationParams.model_validate(job.params)
    if job.state == JobState.SUCCEEDED:
        for image in job.images:
            yield CallImage(partial(_fetched, desk, image), (image.width, image.height), image.size_bytes)
    elif job.state == JobState.CANCELED:
        for index in range(params.num_images):
            preview = previews.get(desk.redis, job.id, index)
            if preview is not None:
                text = infotext.encode(params, index)
                size = params.width, params.height
                yield CallImage(partial(_unfinished, preview, size, text), size, _PIXEL_BYTES * math.prod(size))


def _fetched(desk: Desk, image: ImageRow) -> AnswerImage:
    file = stored_images.fetch(desk, image)
    return AnswerImage(file, _text(file))


def _text(file: bytes) -> str:
    """Read the infotext of a finished image, which comes before its pixels."""
    with Image.open(io.BytesIO(file)) as picture:
        return str(picture.info["parameters"])


def _unfinished(preview: bytes, size: tuple[int, int], text: str) -> AnswerImage:
    """Enlarge a preview to the size of the image and encode it as PNG."""
    with Image.open(io.BytesIO(preview)) as small:
        large = small.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    return AnswerImage(to_png(large, {"parameters": text}), text)


def to_png(picture: Image.Image, texts: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """Encode a picture as PNG, with text chunks by keyword."""
    chunks = PngInfo()
    for keyword, text in texts.items():
        chunks.add_itxt(keyword, text)
    out = io.BytesIO()
    picture.save(out, format="PNG", compress_level=1, pnginfo=chunks)
    return out.getvalue()


def _grid(count: int) -> tuple[int, int]:
    """Return the columns and rows of A1111's grid: nearly square."""
    rows = round(math.sqrt(count))
    return math.ceil(count / rows), rows


def _sheet_pixels(found: Sequence[CallImage]) -> int:
    return math.prod((*_grid(len(found)), *found[0].pixels))


def _fits_on_a_sheet(found: Sequence[CallImage]) -> bool:
    return _sheet_pixels(found) <= MAX_SHEET_PIXELS


def _sheet(files: Sequence[bytes]) -> bytes:
    """Draw A1111's grid of all images."""
    columns, rows = _grid(len(files))
    with Image.open(io.BytesIO(files[0])) as first:
        width, height = first.size
    sheet = Image.new("RGB", (columns * width, rows * height))
    for index, file in enumerate(files):
        with Image.open(io.BytesIO(file)) as picture:
            sheet.paste(picture, (index % columns * width, index // columns * height))
    return to_png(sheet)
