"""Pictures that come inside a submission: checked, brought to one form and stored before the job is."""

import hashlib

from PIL.Image import Image

from api.intake import Intake
from api.v1.resolution import Inputs
from api.v1.submissions import Submission
from shared import pictures
from shared.storage import Storage, input_key


def receive(storage: Storage, intake: Intake, submission: Submission) -> Inputs:
    """Store a submission's pictures. Raises `InvalidRequest` for one that cannot be had or read, `Unavailable`."""
    if submission.init_image is None:
        return Inputs()
    init_file = intake.file(submission.init_image, "init_image")
    mask_file = intake.file(submission.mask_image, "mask_image") if submission.mask_image is not None else None
    with intake.decoding():
        init = pictures.decode(init_file, what="init_image")
        mask = pictures.decode_mask(mask_file) if mask_file is not None else None
        return Inputs(_stored(storage, init), init.size, _stored(storage, mask) if mask else None)


def _stored(storage: Storage, picture: Image) -> str:
    """Store under a name made of the content, so that the same picture sent again is the same object."""
    data = pictures.to_png(picture)
    key = input_key(hashlib.sha256(data).hexdigest())
    storage.put(key, data, content_type="image/png")
    return key
