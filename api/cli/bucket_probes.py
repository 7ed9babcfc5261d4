"""Probe the S3 permissions of each role with the requests that it makes: no more than its policy (deploy/s3-policy) allows.

Probes use the key prefixes of real objects. They are deleted if the role may delete; else one small object remains, always the
same.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID, uuid4

from api.cli.bucket_roles import Role
from shared.errors import ObjectMissing, StorageUnavailable
from shared.fleet import weights_bucket
from shared.fleet.weights_bucket import BucketFile
from shared.infra import large_objects
from shared.infra.storage import IMAGES, Storage, image_key, input_key, snapshot_key, upload_key

PROBE = b"farm doctor"
REFUSED = {"AccessDenied", "403"}
_NOBODY = UUID(int=0)
_WEIGHTS = BucketFile(weights_bucket.CHECKPOINT, "farm-doctor", "0" * 64, 0, datetime.fromtimestamp(0, UTC))


def probe(storage: Storage, roles: Sequence[Role] = tuple(Role)) -> Mapping[Role, StorageUnavailable | None]:
    """Return for each role the error by which the store refused it, or None. Raises `StorageUnavailable` for any other error."""
    return {role: _refusal(storage, role) for role in roles}


def _refusal(storage: Storage, role: Role) -> StorageUnavailable | None:
    try:
        _PROBES[role](storage)
    except StorageUnavailable as error:
        if not _is_refusal(error):
            raise
        return error
    return None


def _is_refusal(error: StorageUnavailable) -> bool:
    response = getattr(error.__cause__, "response", {})
    return response.get("Error", {}).get("Code") in REFUSED


def _worker(storage: Storage) -> None:
    storage.put(image_key(_NOBODY, 0, 0), PROBE, content_type="text/plain")
    with suppress(ObjectMissing):
        storage.get(input_key("doctor"))
    weights_bucket.look(storage)
    with suppress(ObjectMissing):
        large_objects.read_range(storage, _WEIGHTS.key, 0, 8)
    key = snapshot_key(uuid4(), 0)
    storage.put(key, PROBE, content_type="text/plain")
    same = storage.get(key) == PROBE
    storage.delete(key)
    if not same:
        raise StorageUnavailable("An object came back changed: check the proxies between this machine and the store.")


def _api(storage: Storage) -> None:
    storage.ping()
    storage.put(input_key("doctor"), PROBE, content_type="text/plain")
    storage.put(upload_key(_NOBODY), PROBE, content_type="text/plain")
    with suppress(ObjectMissing):
        storage.get(input_key("doctor"))
        storage.get(upload_key(_NOBODY))
        storage.get(image_key(_NOBODY, 0, 0))
    _remove(storage)


def _courier(storage: Storage) -> None:
    storage.keys(IMAGES)
    weights_bucket.look(storage, f"{weights_bucket.CHECKPOINT}/")
    storage.delete(upload_key(_NOBODY))
    _remove(storage)


def _librarian(storage: Storage) -> None:
    weights_bucket.look(storage, f"{_WEIGHTS.kind}/{_WEIGHTS.name}/")
    upload = storage.call("create_multipart_upload", Key=_WEIGHTS.key)["UploadId"]
    large_objects.abandon(storage, _WEIGHTS.key, upload)
    storage.put(_WEIGHTS.config_key, PROBE, content_type="text/plain")
    storage.delete(_WEIGHTS.config_key)


def _remove(storage: Storage) -> None:
    storage.delete(snapshot_key(_NOBODY, 0))
    storage.delete(image_key(uuid4(), 0, 0))


_PROBES: Mapping[Role, Callable[[Storage], None]] = {
    Role.WORKER: _worker,
    Role.API: _api,
    Role.COURIER: _courier,
    Role.LIBRARIAN: _librarian,
}
