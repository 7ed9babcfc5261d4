"""What the dialect does to pictures without rendering: read the text inside, and enlarge. On threads, few at a time."""

import base64
import io
import re
from typing import Annotated, Any

from fastapi import APIRouter
from PIL import Image
from pydantic import Field

from api.a1111 import answers, infotext_parser, names
from api.a1111.errors import NothingFound
from api.a1111.field_types import Flag, Int, Lax, Number, Text
from api.callers import Reader, Submitter
from api.desk import Desk, DeskDep
from shared.errors import BadPicture, InvalidRequest
from shared.files import pictures
from shared.vocabulary.params import MAX_SIDE_PX

router = APIRouter(prefix="/sdapi/v1", strict_content_type=False)

MAX_BATCH = 16
MAX_UPSCALED_SIDE_PX = 4 * MAX_SIDE_PX
_EXIF_COMMENT, _EXIF_IFD = 0x9286, 0x8769
# Of the container, not of the picture's making.
_TECHNICAL = re.compile(
    r"jfif.*|dpi|exif|icc_profile|loop|background|timestamp|duration|progressive|progression|gamma|.*transparency"
)
_RESAMPLING = {"Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}

Share = Annotated[Number, Field(ge=0, le=1)]


class PngInfoRequest(Lax):
    """The picture to read."""

    image: Text = ""


class Enlargement(Lax):
    """How to enlarge: by a factor, or to a size. Face restoration is not on offer."""

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


class Single(Enlargement):
    """One picture to enlarge."""

    image: Text = ""


class NamedPicture(Lax):
    """One of several pictures."""

    data: Text = ""
    name: Text = ""


class Several(Enlargement):
    """Several pictures to enlarge."""

    imageList: Annotated[list[NamedPicture], Field(max_length=MAX_BATCH)] = Field(default_factory=list)  # noqa: N815 - theirs


class InterrogateRequest(Lax):
    """The picture to describe."""

    image: Text = ""
    model: Text = "clip"


@router.post("/png-info", summary="Read the text inside a picture")
def png_info(body: PngInfoRequest, desk: DeskDep, _caller: Reader) -> dict[str, Any]:
    """Return the text that tells how a picture was made, as it is and in its parts."""
    data = desk.intake.file(body.image, "image")
    with desk.intake.decoding():
        pictures.decode(data, what="image")
    text, items = _texts(data)
    return {"info": text, "items": items, "parameters": infotext_parser.parse(text) if text else {}}


@router.post("/extra-single-image", summary="Enlarge a picture")
def extra_single_image(body: Single, desk: DeskDep, _caller: Submitter) -> dict[str, str]:
    """Enlarge one picture."""
    return {"html_info": _html(body), "image": _enlarged(desk, body, body.image, "image")}


@router.post("/extra-batch-images", summary="Enlarge pictures")
def extra_batch_images(body: Several, desk: DeskDep, _caller: Submitter) -> dict[str, Any]:
    """Enlarge several pictures in one way."""
    images = [_enlarged(desk, body, one.data, f"imageList.{index}") for index, one in enumerate(body.imageList)]
    return {"html_info": _html(body), "images": images}


@router.post("/interrogate", summary="Describe a picture")
async def interrogate(body: InterrogateRequest, _caller: Submitter) -> dict[str, str]:
    """Refuse: the farm has no model that describes pictures."""
    raise NothingFound("Model not found" if body.image else "Image not found")


def _enlarged(desk: Desk, how: Enlargement, image: str, what: str) -> str:
    data = desk.intake.file(image, what)
    upscaler = names.pixel_upscaler(how.upscaler_1)
    second = names.pixel_upscaler(how.upscaler_2)
    with desk.intake.decoding():
        picture = pictures.decode(data, what=what)
        width, height = _size(how, picture)
        large = _resized(picture, upscaler, width, height)
        if second != names.NO_UPSCALER and how.extras_upscaler_2_visibility:
            other = _resized(picture, second, width, height).resize(large.size)
            large = Image.blend(large, other, float(how.extras_upscaler_2_visibility))
        if how.resize_mode == 1 and how.upscaling_crop and upscaler != names.NO_UPSCALER:
            large = _cropped(large, how.upscaling_resize_w, how.upscaling_resize_h)
        text, _items = _texts(data)
        chunks = {"parameters": text} if text else {}
        return base64.b64encode(answers.to_png(large, {**chunks, "postprocessing": _facts(how)})).decode()


def _size(how: Enlargement, picture: Image.Image) -> tuple[int, int]:
    """Return the size that a picture comes to; to a size by filling it where the rest is to be cut off, else by fitting in."""
    if how.resize_mode == 0:
        width, height = (int(side * how.upscaling_resize // 8 * 8) for side in picture.size)
    else:
        ratios = how.upscaling_resize_w / picture.width, how.upscaling_resize_h / picture.height
        ratio = max(ratios) if how.upscaling_crop else min(ratios)
        width, height = round(picture.width * ratio), round(picture.height * ratio)
    if max(width, height) > MAX_UPSCALED_SIDE_PX:
        raise InvalidRequest(f"{width} by {height} pixels are more than {MAX_UPSCALED_SIDE_PX} a side.")
    return max(width, 1), max(height, 1)


def _resized(picture: Image.Image, upscaler: str, width: int, height: int) -> Image.Image:
    return picture if upscaler == names.NO_UPSCALER else picture.resize((width, height), _RESAMPLING[upscaler])


def _cropped(picture: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _facts(how: Enlargement) -> str:
    by = f"{how.upscaling_resize}" if how.resize_mode == 0 else f"{how.upscaling_resize_w}x{how.upscaling_resize_h}"
    return f"Postprocess upscale by: {by}, Postprocess upscaler: {names.pixel_upscaler(how.upscaler_1)}"


def _html(how: Enlargement) -> str:
    return f"<p>{_facts(how)}</p>"


def _texts(data: bytes) -> tuple[str, dict[str, str]]:
    """Return the text of a picture's making, "" if there is none, and the other texts inside."""
    try:
        with Image.open(io.BytesIO(data), formats=pictures.FORMATS) as picture:
            picture.load()
            found = {str(name): value for name, value in picture.info.items() if isinstance(value, str)}
            comment = picture.getexif().get_ifd(_EXIF_IFD).get(_EXIF_COMMENT)
    except Exception as error:  # decoders fed with garbage raise whatever they like
        raise BadPicture("image: cannot be read.") from error
    texts = {name: str(value) for name, value in found.items() if not _TECHNICAL.fullmatch(name)}
    text = texts.pop("parameters", "")
    return text or _commented(comment), texts


def _commented(comment: object) -> str:
    """Read an EXIF comment, as JPEG and WebP carry the text: eight bytes that name the encoding, then the text."""
    if not isinstance(comment, bytes) or len(comment) <= 8:
        return ""
    encoding = "utf-16-be" if comment[:7] == b"UNICODE" else "utf-8"
    return comment[8:].decode(encoding, errors="replace")
