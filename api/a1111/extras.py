"""PNG Info and Extras: read the infotext of a picture, and upscale pictures. Interrogate is refused."""

import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from fastapi import Response
from PIL import Image
from pydantic import Field

from api.a1111 import answers, infotext_parser, names
from api.a1111.errors import NothingFound
from api.a1111.field_types import Flag, Int, Lax, Number, Text
from api.callers import Reader, Submitter
from api.desk import Desk, DeskDep
from api.large_answers import LargeAnswer
from api.routing import Router, in_room
from shared.errors import BadPicture, InvalidRequest
from shared.files import pictures
from shared.vocabulary.params import MAX_SIDE_PX

router = Router(prefix="/sdapi/v1", strict_content_type=False)

MAX_BATCH = 16
MAX_TEXT_CHARS = 2**20
MAX_UPSCALED_SIDE_PX = 4 * MAX_SIDE_PX
_EXIF_COMMENT, _EXIF_IFD = 0x9286, 0x8769
# Of the container, not of the picture's making.
_TECHNICAL = re.compile(
    r"jfif.*|dpi|exif|icc_profile|loop|background|timestamp|duration|progressive|progression|gamma|.*transparency"
)
_RESAMPLING = {"Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}

Share = Annotated[Number, Field(ge=0, le=1)]


class PngInfoRequest(Lax):
    """The picture whose infotext to read."""

    image: Text = ""


class UpscaleOptions(Lax):
    """Options of Extras: upscale by a factor (`resize_mode` 0) or to a size (1). Face restoration is not supported."""

    resize_mode: Annotated[Int, Field(ge=0, le=1)] = 0
    show_extras_results: Flag = True
    gfpgan_visibility: Share = 0
    codeformer_visibility: Share = 0
    codeformer_weight: Share = 0
    upscaling_resize: Annotated[Number, Field(gt=0, le=8)] = 2
    upscaling_resize_w: Annotated[Int, Field(ge=1, le=MAX_UPSCALED_SIDE_PX)] = 512
    upscaling_resize_h: Annotated[Int, Field(ge=1, le=MAX_UPSCALED_SIDE_PX)] = 512
    upscaling_crop: Flag = True
    upscaler_1: Text = names.NO_UPSCALER
    upscaler_2: Text = names.NO_UPSCALER
    extras_upscaler_2_visibility: Share = 0
    upscale_first: Flag = False


class UpscaleRequest(UpscaleOptions):
    """One picture to upscale."""

    image: Text = ""


class NamedPicture(Lax):
    """One of several pictures."""

    data: Text = ""
    name: Text = ""


class BatchUpscaleRequest(UpscaleOptions):
    """Several pictures to upscale."""

    imageList: Annotated[list[NamedPicture], Field(max_length=MAX_BATCH)] = Field(default_factory=list)  # noqa: N815 - theirs


class InterrogateRequest(Lax):
    """The picture to describe."""

    image: Text = ""
    model: Text = "clip"


@router.post("/png-info", summary="Read a picture's infotext")
@in_room("intake")
def png_info(body: PngInfoRequest, desk: DeskDep, _caller: Reader) -> dict[str, Any]:
    """Return the infotext of a picture, as text and in its parts."""
    data = desk.intake.file(body.image, "image")
    with desk.intake.decoding():
        pictures.decode(data, what="image")
    text, items = _texts(data)
    if len(text) + sum(map(len, items.values())) > MAX_TEXT_CHARS:
        raise BadPicture(f"image: its texts are longer than {MAX_TEXT_CHARS:,} characters together.")
    return {"info": text, "items": items, "parameters": infotext_parser.parse(text) if text else {}}


@router.post("/extra-single-image", summary="Upscale a picture", response_model=dict[str, str])
@in_room("intake")
def extra_single_image(body: UpscaleRequest, desk: DeskDep, _caller: Submitter) -> Response:
    """Upscale one picture."""
    return _answered(desk, body, {"image": body.image}, opening=b',"image":', closing=b"}")


@router.post("/extra-batch-images", summary="Upscale pictures", response_model=dict[str, Any])
@in_room("intake")
def extra_batch_images(body: BatchUpscaleRequest, desk: DeskDep, _caller: Submitter) -> Response:
    """Upscale several pictures with the same options."""
    texts = {f"imageList.{index}": one.data for index, one in enumerate(body.imageList)}
    return _answered(desk, body, texts, opening=b',"images":[', closing=b"]}")


@router.post("/interrogate", summary="Describe a picture")
async def interrogate(body: InterrogateRequest, _caller: Submitter) -> dict[str, str]:
    """Answers 404: the farm has no model that describes pictures."""
    raise NothingFound("Model not found" if body.image else "Image not found")


def _answered(
    desk: Desk, options: UpscaleOptions, texts: Mapping[str, str], *, opening: bytes, closing: bytes
) -> Response:
    """Answer with the pictures of these fields, upscaled, between the JSON before and after them."""
    files = {what: desk.intake.file(text, what) for what, text in texts.items()}
    for upscaler in (options.upscaler_1, options.upscaler_2):
        names.pixel_upscaler(upscaler)  # raises for one that the farm lacks
    pixels = [_most_pixels(options, file, what) for what, file in files.items()]
    if sum(pixels) > MAX_UPSCALED_SIDE_PX**2:
        raise InvalidRequest(
            f"The results would have {sum(pixels):,} pixels together, of at most {MAX_UPSCALED_SIDE_PX**2:,}; send fewer."
        )
    pieces = _pieces(desk, options, files, opening=opening, closing=closing)
    # All results, and three pictures while one is made.
    needs_bytes = 3 * (sum(pixels) + 3 * max(pixels, default=0))
    return LargeAnswer(
        pieces,
        needs_bytes=needs_bytes,
        media_type="application/json",
        room="intake",
        kept_bytes=sum(map(len, files.values())),
    )


def _pieces(
    desk: Desk, options: UpscaleOptions, files: Mapping[str, bytes], *, opening: bytes, closing: bytes
) -> Iterator[bytes]:
    # All before the first is sent: a picture that cannot be read is a status.
    made = [_upscaled(desk, options, file, what) for what, file in files.items()]
    yield b'{"html_info":' + json.dumps(_html(options)).encode() + opening
    for index, file in enumerate(made):
        yield b',"' if index else b'"'
        yield from answers.encoded(file)
        yield b'"'
    yield closing


def _most_pixels(options: UpscaleOptions, file: bytes, what: str) -> int:
    """Return the most pixels that a result may have, from the picture's header. Raises `BadPicture`."""
    before = pictures.pixels_in(file, what=what)
    if options.resize_mode == 0:
        return max(before, min(int(before * options.upscaling_resize**2), MAX_UPSCALED_SIDE_PX**2))
    return max(before, options.upscaling_resize_w * options.upscaling_resize_h)


def _upscaled(desk: Desk, options: UpscaleOptions, file: bytes, what: str) -> bytes:
    upscaler = names.pixel_upscaler(options.upscaler_1)
    second = names.pixel_upscaler(options.upscaler_2)
    with desk.intake.decoding():
        picture = pictures.decode(file, what=what)
        width, height = _size(options, picture)
        large = _resized(picture, upscaler, width, height)
        if second != names.NO_UPSCALER and options.extras_upscaler_2_visibility:
            other = _resized(picture, second, width, height).resize(large.size)
            large = Image.blend(large, other, float(options.extras_upscaler_2_visibility))
        if options.resize_mode == 1 and options.upscaling_crop and upscaler != names.NO_UPSCALER:
            large = _cropped(large, options.upscaling_resize_w, options.upscaling_resize_h)
        text, _items = _texts(file)
        chunks = {"parameters": text} if text else {}
        return answers.to_png(large, {**chunks, "postprocessing": _facts(options)})


def _size(options: UpscaleOptions, picture: Image.Image) -> tuple[int, int]:
    """Return the upscaled width and height. To a size: cover it if the rest is cropped, else fit into it."""
    if options.resize_mode == 0:
        width, height = (int(side * options.upscaling_resize // 8 * 8) for side in picture.size)
    else:
        ratios = options.upscaling_resize_w / picture.width, options.upscaling_resize_h / picture.height
        ratio = max(ratios) if options.upscaling_crop else min(ratios)
        width, height = round(picture.width * ratio), round(picture.height * ratio)
    if max(width, height) > MAX_UPSCALED_SIDE_PX:
        raise InvalidRequest(
            f"The result would be {width}x{height} px; a side may have at most {MAX_UPSCALED_SIDE_PX} px."
        )
    return max(width, 1), max(height, 1)


def _resized(picture: Image.Image, upscaler: str, width: int, height: int) -> Image.Image:
    return picture if upscaler == names.NO_UPSCALER else picture.resize((width, height), _RESAMPLING[upscaler])


def _cropped(picture: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _facts(options: UpscaleOptions) -> str:
    by = (
        f"{options.upscaling_resize}"
        if options.resize_mode == 0
        else f"{options.upscaling_resize_w}x{options.upscaling_resize_h}"
    )
    return f"Postprocess upscale by: {by}, Postprocess upscaler: {names.pixel_upscaler(options.upscaler_1)}"


def _html(options: UpscaleOptions) -> str:
    return f"<p>{_facts(options)}</p>"


def _texts(data: bytes) -> tuple[str, dict[str, str]]:
    """Return a picture's infotext, "" without one, and its other text chunks. Raises `BadPicture`."""
    try:
        with Image.open(io.BytesIO(data), formats=pictures.FORMATS) as picture:
            picture.load()
            strings = {str(name): value for name, value in picture.info.items() if isinstance(value, str)}
            comment = picture.getexif().get_ifd(_EXIF_IFD).get(_EXIF_COMMENT)
    except Exception as error:  # decoders fed with garbage raise whatever they like
        raise BadPicture("image: the picture cannot be read.") from error
    texts = {name: str(value) for name, value in strings.items() if not _TECHNICAL.fullmatch(name)}
    text = texts.pop("parameters", "")
    return text or _commented(comment), texts


def _commented(comment: object) -> str:
    """Decode an EXIF user comment, where JPEG and WebP have the infotext: eight bytes name the encoding, the text follows."""
    if not isinstance(comment, bytes) or len(comment) <= 8:
        return ""
    encoding = "utf-16-be" if comment[:7] == b"UNICODE" else "utf-8"
    return comment[8:].decode(encoding, errors="replace")
