"""S3-compatible object storage. All keys are built and parsed here; vendor errors become the farm's errors here."""

import base64
import hashlib
import re
from base64 import b64encode
from collections.abc import Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache
from hashlib import md5
from typing import Any
from uuid import UUID

import boto3
import botocore.session
import structlog
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import Loader, create_loader

from shared.errors import NoBucket, ObjectDamaged, ObjectMissing, StorageRefused, StorageUnavailable
from shared.settings import Settings

DELETED_AT_ONCE = 1000  # what S3 takes in one request
LISTED_AT_ONCE = 1000  # what S3 answers at most
# How stores say that they delete objects only one by one: by status, or as a bad request of one of these codes.
SINGLY_STATUSES = {405, 411, 501}
SINGLY_CODES = {"400", "InvalidArgument", "InvalidRequest", "MalformedXML", "MethodNotAllowed", "NotImplemented"}
# Refusals that no patience mends.
UNBELIEVED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "RequestTimeTooSkewed"}
FORBIDDEN = {"403", "AccessDenied"}
SKEW_S = 5 * 60  # stores refuse what was signed more than 15 minutes ago or ahead

IMAGES = "jobs/"
SNAPSHOTS = "snapshots/"

# What resolves a store's refusal, by its code; HEAD requests have only the status.
ADVICE = {
    "NoSuchBucket": "create the bucket, or mend FARM_S3_BUCKET",
    "404": "create the bucket, or mend FARM_S3_BUCKET",
    "InvalidAccessKeyId": "check FARM_S3_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "check FARM_S3_SECRET_ACCESS_KEY",
    "AccessDenied": "allow the key to do this; deploy/s3-policy lists the permissions",
    "403": "check the S3 key, or allow it to do this; deploy/s3-policy lists the permissions",
    "301": "check FARM_S3_REGION",
    "PermanentRedirect": "check FARM_S3_REGION",
    "AuthorizationHeaderMalformed": "check FARM_S3_REGION",
    "RequestTimeTooSkewed": "set this machine's clock: timedatectl set-ntp true",
    # What stores answer that have no room left.
    "InternalError": "read the store's log; if its disk is full, make room there",
    "XMinioStorageFull": "make room on the store's disks",
    "ExpiredToken": "renew the credentials of this machine",
}

log = structlog.get_logger(__name__)


def image_key(job_id: UUID, attempt: int, index: int) -> str:
    """Return the key of an image. It holds the attempt, so a zombie cannot overwrite the visible image."""
    return f"{IMAGES}{job_id}/{attempt}/{index}.png"


def snapshot_key(job_id: UUID, attempt: int) -> str:
    """Return the key of an attempt's snapshot of an unfinished job."""
    return f"{SNAPSHOTS}{job_id}/{attempt}.safetensors"


def input_key(sha256: str) -> str:
    """Return the key of a client's picture: content-addressed."""
    return f"inputs/{sha256}.png"


def upload_key(upload_id: UUID) -> str:
    """Return the key of an upload: the raw file of a client."""
    return f"uploads/{upload_id}"


def input_digest(key: str) -> str:
    """Return the sha256 of a client's picture, which is in its key."""
    return key.removeprefix("inputs/").removesuffix(".png")


def job_of(key: str) -> UUID | None:
    """Return the job id in the key of an image or snapshot; None for other keys."""
    found = _OF_A_JOB.fullmatch(key)
    return UUID(found[1]) if found else None


_ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_OF_A_JOB = re.compile(rf"(?:{IMAGES}|{SNAPSHOTS})({_ID})/\d+(?:/\d+\.png|\.safetensors)")


class Storage:
    """One bucket. Every call makes up to `tries` tries of `read_s` seconds each, then raises `StorageUnavailable`."""

    def __init__(self, settings: Settings, *, tries: int = 4, read_s: float = 20.0) -> None:
        self._bucket = settings.s3_bucket
        self._client = _client(settings, settings.s3_endpoint_url, tries, read_s)
        # Presigned URLs carry the host in their signature, so they are signed for the address that clients use.
        public = settings.s3_public_url
        self._public = _client(settings, public, tries, read_s) if public else self._client
        self._deletes_singly = False

    def put(self, key: str, data: bytes, *, content_type: str) -> None:
        """Store an object, replacing what was there. The store is told its MD5, and refuses what arrives damaged."""
        md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        self.call("put_object", Key=key, Body=data, ContentType=content_type, ContentMD5=md5)

    def put_surely(self, key: str, data: bytes, *, content_type: str) -> None:
        """Store an object and see that it is there. Raises `ObjectDamaged` if a store took it and did not keep it whole.

        A key that may not read what it writes, as the worker's policy has it, takes the store's word.
        """
        self.put(key, data, content_type=content_type)
        try:
            kept = self.size(key)
        except ObjectMissing:
            kept = 0
        except StorageUnavailable as error:
            if _code(error.__cause__) not in FORBIDDEN:
                raise
            return
        if kept != len(data):
            raise ObjectDamaged(f"The image storage took {len(data)} bytes as {key} and keeps {kept} of them.")

    def get(self, key: str) -> bytes:
        """Return an object's bytes. Raises `ObjectMissing` when there is none."""
        answer = self.call("get_object", Key=key)
        try:
            body: bytes = answer["Body"].read()
        except (BotoCoreError, OSError) as error:
            raise StorageUnavailable(
                f"The connection to the image storage broke while it sent an object: {error}"
            ) from error
        return body

    def get_whole(self, key: str, *, sha256: str) -> bytes:
        """Return an object's bytes, whose digest is known; ask twice if they do not match.

        Raises `ObjectMissing`, and `ObjectDamaged` if they do not match again.
        """
        for _ in range(2):
            data = self.get(key)
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
        raise ObjectDamaged(f"The image storage gave back {key} damaged, twice.")

    def size(self, key: str) -> int:
        """Return an object's size in bytes. Raises `ObjectMissing` when there is none."""
        try:
            return int(self.call("head_object", Key=key)["ContentLength"])
        except StorageUnavailable as error:
            if _code(error.__cause__) == "404":
                raise ObjectMissing(f"The image storage has no object {key}.") from error
            raise

    def keys(self, prefix: str, *, after: str = "") -> Sequence[str]:
        """List the keys of a prefix in order, after the key `after`, at most `LISTED_AT_ONCE`."""
        page = {"Prefix": prefix, "StartAfter": after, "MaxKeys": LISTED_AT_ONCE}
        return [found["Key"] for found in self.call("list_objects_v2", **page).get("Contents", [])]

    def delete(self, key: str) -> None:
        """Delete an object; a missing one is fine."""
        self.call("delete_object", Key=key)

    def delete_all(self, keys: Sequence[str]) -> None:
        """Delete objects, in requests of at most a thousand, or one by one in a store that lacks that; missing ones are fine.

        Raises `StorageUnavailable` even if the store refused a single one.
        """
        for start in range(0, len(keys), DELETED_AT_ONCE):
            some = keys[start : start + DELETED_AT_ONCE]
            if self._deletes_singly:
                self._delete_singly(some)
            else:
                self._delete_in_bulk(some)

    def _delete_in_bulk(self, keys: Sequence[str]) -> None:
        wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        try:
            answer = self.call("delete_objects", Delete=wanted)
        except StorageUnavailable as error:
            if not _lacks_bulk(error.__cause__):
                raise
            self._delete_singly(keys)
            # Only now: a refusal that meant something else would have come again.
            self._deletes_singly = True
            log.info("storage.deletes_singly", error=str(error))
            return
        refused = [one for one in answer.get("Errors", []) if one.get("Code") != "NoSuchKey"]
        if refused:
            raise StorageUnavailable(
                f"The image storage did not delete {len(refused)} objects: {refused[0].get('Message')}."
            )

    def _delete_singly(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.delete(key)

    def url(self, key: str, *, ttl_s: float, filename: str, content_type: str, head: bool = False) -> str:
        """Return a presigned GET URL, or one for HEAD, that works for `ttl_s` seconds without credentials."""
        url: str = self._public.generate_presigned_url(
            "head_object" if head else "get_object",
            Params={
                "Bucket": self._bucket,
                "Key": key,
                "ResponseContentType": content_type,
                "ResponseContentDisposition": f'inline; filename="{filename}"',
            },
            ExpiresIn=int(ttl_s),
        )
        return url

    def upload_url(self, key: str, *, size_bytes: int, ttl_s: float) -> str:
        """Return a presigned PUT URL for exactly `size_bytes` bytes. It works for `ttl_s` seconds without credentials."""
        about = {"Bucket": self._bucket, "Key": key, "ContentLength": size_bytes}
        url: str = self._public.generate_presigned_url("put_object", Params=about, ExpiresIn=int(ttl_s))
        return url

    def ping(self) -> None:
        """Send HEAD for the bucket. Raises `StorageUnavailable`."""
        self.call("head_bucket")

    def check(self) -> None:
        """Check bucket and credentials. Raises `NoBucket`, `StorageRefused` or `StorageUnavailable`.

        A key may be forbidden to see the bucket on purpose. Then this asks for an object: stores answer that with an error code.
        """
        try:
            self.ping()
        except StorageUnavailable as error:
            code = _code(error.__cause__)
            if code in {"404", "NoSuchBucket"}:
                raise NoBucket(f"There is no bucket {self._bucket!r}: create it, or check FARM_S3_BUCKET.") from error
            if code not in FORBIDDEN:
                raise
        else:
            return
        try:
            self.get(input_key("doctor"))
        except ObjectMissing:
            return
        except StorageUnavailable as error:
            code = "RequestTimeTooSkewed" if _is_skewed(error.__cause__) else _code(error.__cause__)
            if code in UNBELIEVED:
                raise StorageRefused(str(error)) from error
            if code != "AccessDenied":
                raise

    def call(self, operation: str, **arguments: Any) -> Any:
        """Ask for an operation of boto3's client on the bucket. Raises `ObjectMissing` or `StorageUnavailable`."""
        try:
            return getattr(self._client, operation)(Bucket=self._bucket, **arguments)
        except (BotoCoreError, ClientError) as error:
            code = "RequestTimeTooSkewed" if _is_skewed(error) else _code(error)
            if code == "NoSuchKey":
                raise ObjectMissing(f"The image storage has no object {arguments.get('Key')}.") from error
            advice = f"; {ADVICE[code]}" if code in ADVICE else ""
            raise StorageUnavailable(f"The image storage refused {operation}: {error}{advice}.") from error


def _code(error: BaseException | None) -> str:
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def _lacks_bulk(error: BaseException | None) -> bool:
    """Whether a store has refused a bulk delete because it does not know them."""
    if not isinstance(error, ClientError):
        return False
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status in SINGLY_STATUSES or (status == 400 and _code(error) in SINGLY_CODES)


def _is_skewed(error: BaseException | None) -> bool:
    """Whether a bare 403 came from a store whose clock differs from this machine's by more than `SKEW_S`."""
    if _code(error) != "403":
        return False
    assert isinstance(error, ClientError)  # noqa: S101 - others have no code
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        store_time = parsedate_to_datetime(headers.get("date", ""))
    except ValueError:
        return False
    return abs((store_time - datetime.now(store_time.tzinfo)).total_seconds()) > SKEW_S


@cache
def _descriptions() -> Loader:
    """Return botocore's descriptions of S3, read once per process: they are megabytes, and a session would read its own."""
    return create_loader()


def _client(settings: Settings, endpoint_url: str | None, tries: int, read_s: float) -> Any:
    secret = settings.s3_secret_access_key
    session = botocore.session.get_session()
    session.register_component("data_loader", _descriptions())
    client = boto3.session.Session(botocore_session=session).client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key_id,
        aws_secret_access_key=secret.get_secret_value() if secret else None,
        config=Config(
            signature_version="s3v4",
            connect_timeout=settings.connect_seconds,
            read_timeout=read_s,
            retries={"mode": "standard", "max_attempts": tries},
            max_pool_connections=32,
            # Stores older than 2025 do not know the newer default checksums.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"} if endpoint_url else {},
        ),
    )
    client.meta.events.register("before-sign.s3.DeleteObjects", _add_md5)
    return client


def _add_md5(request: AWSRequest, **_: Any) -> None:
    """Add the checksum of a bulk delete that S3 asked for until 2024, which many stores still do; boto3 sends CRC32 alone."""
    request.headers["Content-MD5"] = b64encode(md5(request.body, usedforsecurity=False).digest()).decode()
