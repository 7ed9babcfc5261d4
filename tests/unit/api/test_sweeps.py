"""What a batch asks for, cell by cell."""

import io
import zipfile
from datetime import UTC, datetime
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from api.admission.sweeps import MAX_JOBS, BatchSubmission
from api.annex import contact_sheet
from api.annex.contact_sheet import Edges, Tile
from api.v1 import zip_stream

CIRCLE = {"prompt": "a red circle"}


def batch(**fields: Any) -> BatchSubmission:
    return BatchSubmission.model_validate(fields)


def test_a_grid_is_every_combination_and_the_last_changes_fastest() -> None:
    made = batch(template=CIRCLE, grid={"guidance_scale": [5.0, 9.0], "steps": [10, 20, 30]})
    cells = [(one.guidance_scale, one.steps) for one in made.submissions]
    assert cells == [(5, 10), (5, 20), (5, 30), (9, 10), (9, 20), (9, 30)]


def test_a_zip_goes_side_by_side() -> None:
    made = batch(template={"steps": 4}, zip={"prompt": ["a", "b"], "seed": [1, 2]})
    assert [(one.prompt, one.seed, one.steps) for one in made.submissions] == [("a", 1, 4), ("b", 2, 4)]


def test_the_seed_is_drawn_once_and_shared() -> None:
    seeds = {one.seed for one in batch(template={**CIRCLE, "seed": -1}, grid={"steps": [1, 2, 3]}).submissions}
    assert len(seeds) == 1
    assert seeds.pop() not in {None, -1}
    assert [one.seed for one in batch(template=CIRCLE, grid={"seed": [7, 8]}).submissions] == [7, 8]


def test_inner_parameters_are_named_with_a_dot() -> None:
    made = batch(template={**CIRCLE, "hires": {"scale": 1.5}}, grid={"hires.strength": [0.3, 0.6]})
    assert [(one.hires.scale, one.hires.strength) for one in made.submissions if one.hires] == [(1.5, 0.3), (1.5, 0.6)]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "either jobs, or a template"),
        ({"jobs": [CIRCLE], "template": CIRCLE}, "either jobs, or a template"),
        ({"jobs": [CIRCLE], "grid": {"steps": [1]}}, "cannot be combined with jobs"),
        ({"jobs": []}, "at least 1"),
        ({"jobs": [CIRCLE] * (MAX_JOBS + 1)}, "at most 1000"),
        ({"template": CIRCLE}, "either a grid or a zip"),
        ({"template": CIRCLE, "grid": {}}, "at least 1"),
        ({"template": CIRCLE, "grid": {"steps": []}}, "at least 1"),
        ({"template": CIRCLE, "grid": {"steps": [1], "seed": [1]}, "zip": {"seed": [1]}}, "either a grid or a zip"),
        ({"template": CIRCLE, "zip": {"steps": [1, 2], "seed": [1]}}, "the same length"),
        ({"template": CIRCLE, "grid": {"steps": [1] * 40, "seed": [1] * 40}}, "1600 jobs"),
        ({"template": CIRCLE, "grid": {"steps": [1, 151]}}, "where steps is 151: steps: Input should be less"),
        ({"template": CIRCLE, "grid": {"no_such": [1]}}, "where no_such is 1: no_such: Extra inputs"),
        ({"template": CIRCLE, "grid": {"steps.inner": [1]}}, "steps: Input should be a valid integer"),
        ({"template": {}, "grid": {"steps": [1]}}, "prompt: Field required"),
        ({"template": CIRCLE, "grid": {"steps": [1]}, "name": "a\0b"}, "NUL"),
    ],
)
def test_what_makes_no_batch_is_refused_with_its_reason(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        batch(**fields)


def square(color: str) -> Tile:
    return Tile(Image.new("RGB", (64, 64), color))


def test_a_sheet_shows_each_picture_in_its_place() -> None:
    tiles = [square("#ff0000"), square("#00ff00"), Tile(None, "failed"), square("#0000ff")]
    drawn = contact_sheet.draw(tiles, columns=2, edges=Edges(("steps 1", "steps 2"), ("seed 1", "seed 2 " + "x" * 99)))
    with Image.open(io.BytesIO(drawn)) as picture:
        sheet = picture.convert("RGB")
    side = contact_sheet.tile_px(2, 2) + contact_sheet.GAP_PX
    right, low = sheet.width - side // 2, sheet.height - side // 2

    def main(x: int, y: int) -> int:
        channels = sheet.getpixel((x, y))
        assert isinstance(channels, tuple)
        return channels.index(max(channels))

    assert (main(right - side, low - side), main(right, low - side), main(right, low)) == (0, 1, 2)


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (16, 16), (256, 1), (1, 256)])
def test_a_sheet_stays_small_enough_to_open(columns: int, rows: int) -> None:
    drawn = contact_sheet.draw([Tile(None, "queued")] * (columns * rows), columns=columns, edges=Edges((), ()))
    with Image.open(io.BytesIO(drawn)) as picture:
        assert max(picture.size) <= 256 * (contact_sheet.LEAST_TILE_PX + contact_sheet.GAP_PX) + contact_sheet.GAP_PX


def test_a_zip_is_whole_and_sent_in_pieces() -> None:
    files = [(f"{n}.png", lambda n=n: bytes([n]) * 1000) for n in range(3)]
    pieces = list(zip_stream.zipped(files, at=datetime(2026, 11, 24, tzinfo=UTC)))
    assert len(pieces) == 4
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name)[0] for name in archive.namelist()} == {"0.png": 0, "1.png": 1, "2.png": 2}


def test_a_zip_that_breaks_off_is_no_zip() -> None:
    def gone() -> bytes:
        raise OSError("the storage is away")

    sent = zip_stream.zipped([("a", lambda: b"a"), ("b", gone)], at=datetime.now(UTC))
    first = next(sent)
    with pytest.raises(OSError, match="the storage is away"):
        next(sent)
    assert not zipfile.is_zipfile(io.BytesIO(first))
