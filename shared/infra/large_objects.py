"""Objects too large for memory: sent in parts and read by ranges, each from where an earlier try has ended."""

import hashlib
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO

from botocore.exceptions import BotoCoreError

from shared.errors import StorageUnavailable
from shared.infra.storage import LISTED_AT_ONCE, Storage

PART_BYTES = 16 * 2**20  # of at most 10,000
CHUNK_BYTES = 2**20

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as a store lists it."""

    key: str
    size_bytes: int
    modified_at: datetime


def listed(storage: Storage, prefix: str, *, at_most: int) -> Iterator[StoredObject]:
    """Yield the objects of a prefix in the order of their keys, a page of `LISTED_AT_ONCE` at a time."""
    after = ""
    for _ in range(0, at_most, LISTED_AT_ONCE):
        answer = storage.call("list_objects_v2", Prefix=prefix, StartAfter=after, MaxKeys=LISTED_AT_ONCE)
        found = answer.get("Contents", [])
        yield from (StoredObject(one["Key"], int(one["Size"]), one["LastModified"]) for one in found)
        if not answer.get("IsTruncated") or not found:
            return
        after = found[-1]["Key"]


def read_range(storage: Storage, key: str, begin: int, end: int) -> bytes:
    """Return the bytes `begin` … `end - 1` of an object, or fewer at its end. Raises `ObjectMissing`, `StorageUnavailable`."""
    return b"".join(_body(storage.call("get_object", Key=key, Range=f"bytes={begin}-{end - 1}")))


def read_from(storage: Storage, key: str, begin: int) -> Iterator[bytes]:
    """Yield an object's bytes from `begin` on. Raises `ObjectMissing`, or `StorageUnavailable` if the connection breaks."""
    return _body(storage.call("get_object", Key=key, **({"Range": f"bytes={begin}-"} if begin else {})))


def send(storage: Storage, key: str, source: BinaryIO, *, sha256: str, advance: Advance) -> bool:
    """Store all that is in `source`, whose digest is known, in parts; `advance` is told of bytes.

    An upload that the store has broken off is gone on with by the next one of the same key; one that is stopped here, as by
    Ctrl-C, is abandoned. Nothing is seen under the key before the last part is there. Returns False, and stores nothing, if
    what was read has another digest. Raises `StorageUnavailable`.
    """
    upload = _unfinished(storage, key) or storage.call("create_multipart_upload", Key=key)["UploadId"]
    try:
        parts, read = _send_parts(storage, key, upload, source, advance)
        if read != sha256:
            abandon(storage, key, upload)
            return False
        storage.call("complete_multipart_upload", Key=key, UploadId=upload, MultipartUpload={"Parts": parts})
    except StorageUnavailable:
        raise
    except BaseException:
        abandon(storage, key, upload)
        raise
    return True


def abandon(storage: Storage, key: str, upload: str) -> None:
    """Drop the parts of an upload. A store that is away keeps them, unseen."""
    with suppress(StorageUnavailable):
        storage.call("abort_multipart_upload", Key=key, UploadId=upload)


def unfinished(storage: Storage, prefix: str) -> Mapping[str, str]:
    """Return the uploads under a prefix that have not been completed, by key; none in a store that cannot tell."""
    with suppress(StorageUnavailable):
        found = storage.call("list_multipart_uploads", Prefix=prefix).get("Uploads", [])
        return {one["Key"]: one["UploadId"] for one in found}
    return {}


def _unfinished(storage: Storage, key: str) -> str | None:
    return unfinished(storage, key).get(key)


def _send_parts(
    storage: Storage, key: str, upload: str, source: BinaryIO, advance: Advance
) -> tuple[list[dict[str, Any]], str]:
    """Send what the store does not have yet; return the parts of the whole, and the digest of what was read."""
    kept = _kept(storage, key, upload)
    digest, parts = hashlib.sha256(), list[dict[str, Any]]()
    for number, chunk in enumerate(iter(lambda: source.read(PART_BYTES), b""), 1):
        digest.update(chunk)
        md5 = hashlib.md5(chunk, usedforsecurity=False)
        etag = f'"{md5.hexdigest()}"'
        if kept.get(number) != etag:
            checksum = b64encode(md5.digest()).decode()
            about = {"Key": key, "UploadId": upload, "PartNumber": number, "ContentMD5": checksum}
            etag = storage.call("upload_part", Body=chunk, **about)["ETag"]
        parts.append({"PartNumber": number, "ETag": etag})
        advance(len(chunk))
    return parts, digest.hexdigest()


def _kept(storage: Storage, key: str, upload: str) -> Mapping[int, str]:
    """Return the checksums of the first parts that the store has, as it lists them, by number."""
    with suppress(StorageUnavailable):
        return {
            one["PartNumber"]: one["ETag"]
            for one in storage.call("list_parts", Key=key, UploadId=upload).get("Parts", [])
        }
    return {}


def _body(answer: Any) -> Iterator[bytes]:
    try:
        yield from answer["Body"].iter_chunks(CHUNK_BYTES)
    except (BotoCoreError, OSError) as error:
        raise StorageUnavailable(
            f"The connection to the image storage broke while it sent an object: {error}"
        ) from error
