"""Input pictures of submissions: decoded, converted to PNG and stored before their job."""

import hashlib
import re
from collections.abc import Sequence
from typing import cast
from uuid import UUID

from api import stored_images
from api.admission.resolution import StoredInputs
from api.admission.submissions import Submission
from api.callers import Caller
from api.desk import Desk
from api.limits.workrooms import Workroom
from api.picture_intake import is_base64
from api.stored_images import InputField
from shared.errors import InvalidRequest, ObjectMissing
from shared.files import pictures
from shared.infra.deadline import within
from shared.infra.storage import input_key, upload_key
from shared.jobs import inputs, lifecycle, uploads

# Different pictures in one batch: each takes up to a second of a thread while the client waits.
MAX_PAIRS = 32
# A picture that is no larger takes a few milliseconds to decode, if it comes alone.
SMALL_BYTES = 128 * 1024
SMALL_PIXELS = 512 * 512
_UUID_CHARS = 36
# Where the api shows an input of a job, which names it for another job; it may lie under a prefix.
_OF_A_JOB = re.compile(r"(?:/[\w.~%-]+)*/v1/jobs/([0-9a-fA-F-]{36})/inputs/(init_image|mask_image)")
_PATH_CHARS = 300


def room(desk: Desk, *submissions: Submission) -> Workroom:
    """Return the room to admit submissions in: pictures may have to be fetched, and are decoded and stored."""
    return desk.rooms.intake if any(one.init_image is not None for one in submissions) else desk.rooms.database


def store_inputs(desk: Desk, caller: Caller, submission: Submission) -> StoredInputs:
    """Store a submission's pictures. Raises `InvalidRequest` for one that cannot be fetched or read, and `Unavailable`."""
    if submission.init_image is None:
        return StoredInputs()
    # Together, for the client waits for both.
    with within(desk.settings.fetch_seconds):
        init_file = _file(desk, caller, submission.init_image, "init_image")
        mask_text = submission.mask_image
        mask_file = None if mask_text is None else _file(desk, caller, mask_text, "mask_image")
    with desk.intake.decoding():
        size, init_png = _normalised(desk, init_file, "init_image")
        mask_png = None if mask_file is None else _normalised(desk, mask_file, "mask_image")[1]
    return StoredInputs(_stored(desk, init_png), size, _stored(desk, mask_png) if mask_png else None)


def store_all_inputs(desk: Desk, caller: Caller, submissions: Sequence[Submission]) -> Sequence[StoredInputs]:
    """Store the pictures of many submissions, each picture once."""
    pairs = [(one.init_image, one.mask_image) for one in submissions]
    different = dict(zip(pairs, submissions, strict=True))
    if len(different) - ((None, None) in different) > MAX_PAIRS:
        raise InvalidRequest(
            f"A batch may have at most {MAX_PAIRS} different input pictures; split it into several batches."
        )
    received = {pair: store_inputs(desk, caller, one) for pair, one in different.items()}
    return [received[pair] for pair in pairs]


def _normalised(desk: Desk, file: bytes | str, what: InputField) -> tuple[tuple[int, int], bytes]:
    """Return the size of a picture, a file or base64, and a PNG of it. Raises `BadPicture`."""
    if len(file) <= SMALL_BYTES and not desk.rooms.intake.is_crowded:
        file = pictures.from_base64(file, what) if isinstance(file, str) else file
        here = pictures.pixels_in(file, what=what) <= SMALL_PIXELS
    else:
        here = False
    data = file.encode("utf-8", "surrogatepass") if isinstance(file, str) else file
    how = {"what": what, "is_base64": isinstance(file, str), "is_mask": what == "mask_image"}
    made = desk.annex.do("normalise_picture", data, here=here, **how)
    width, height = made.about["size"]
    return (width, height), made.data


def _file(desk: Desk, caller: Caller, text: str, what: str) -> bytes | str:
    """Return the bytes of a URL, an upload or a job's input; base64 as it is."""
    named = _OF_A_JOB.fullmatch(text) if len(text) <= _PATH_CHARS else None
    if named and (job_id := _uuid(named[1])):
        return _input_of(desk, caller, job_id, cast(InputField, named[2]))
    upload_id = _uuid(text)
    if upload_id is None:
        return text if is_base64(text) else desk.intake.file(text, what)
    with desk.db.transaction() as session:
        row = uploads.get(session, upload_id, owner=caller.owner)
    try:
        # Not more than was announced, whatever the storage let through.
        if desk.storage.size(upload_key(row.id)) > row.size_bytes:
            raise InvalidRequest(f"{what}: upload {row.id} is larger than the {row.size_bytes} bytes announced.")
        return desk.storage.get(upload_key(row.id))
    except ObjectMissing as error:
        raise InvalidRequest(f"{what}: upload {row.id} has no file yet; PUT it to its upload_url first.") from error


def _input_of(desk: Desk, caller: Caller, job_id: UUID, field: InputField) -> bytes:
    """Return an input of a job that the caller may see. Raises `JobNotFound`, `ImageNotFound` and `Gone`."""
    with desk.db.transaction() as session:
        job = lifecycle.get(session, job_id, owner=caller.sees_only)
    return stored_images.fetch_input(desk, job, field)


def _uuid(text: str) -> UUID | None:
    """Return a UUID, None for base64 or a URL. No base64 of a picture looks like one."""
    if len(text) != _UUID_CHARS or text.count("-") != 4:
        return None
    try:
        return UUID(text)
    except ValueError:
        return None


def _stored(desk: Desk, data: bytes) -> str:
    """Store a picture under the hash of its content and return the key: the same picture is stored once."""
    key = input_key(hashlib.sha256(data).hexdigest())
    with desk.db.transaction() as session:
        inputs.keep(session, key)  # first, in its own transaction: only a row that is seen protects the object
    desk.storage.put(key, data, content_type="image/png")
    return key
