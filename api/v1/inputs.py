"""Pictures that come inside a submission: checked, brought to one form and stored before the job is."""

import hashlib

from PIL.Image import Image

from api.v1.resolution import Inputs
from api.v1.submissions import Submission
from shared import pictures
from shared.storage import Storage, input_key


def receive(storage: Storage, submission: Submission) -> Inputs:
    """Store a submission's pictures. Raises `BadPicture` for one that cannot be read, `StorageUnavailable`."""
    if submission.init_image is None:
        return Inputs()
    init = pictures.decode(pictures.from_base64(submission.init_image, "init_image"), what="init_image")
    mask = None
    if submission.mask_image is not None:
        mask = pictures.decode_mask(pictures.from_base64(submission.mask_image, "mask_image"))
    return Inputs(_stored(storage, init), init.size, _stored(storage, mask) if mask else None)


def _stored(storage: Storage, picture: Image) -> str:
    """Store under a name made of the content, so that the same picture sent again is the same object."""
    data = pictures.to_png(picture)
    key = input_key(hashlib.sha256(data).hexdigest())
    storage.put(key, data, content_type="image/png")
    return key
