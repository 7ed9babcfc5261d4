"""The S3 border, on a real S3 server."""

from uuid import uuid4

import httpx
import pytest

from shared.errors import ObjectMissing, StorageUnavailable
from shared.infra.storage import Storage, image_key
from shared.settings import Settings


def test_put_get_url_delete(storage: Storage) -> None:
    key = image_key(uuid4(), 1, 0)
    storage.put(key, b"bytes", content_type="image/png")
    assert storage.get(key) == b"bytes"
    url = storage.url(key, ttl_s=60, filename="a.png", content_type="image/png")
    assert httpx.get(url, timeout=60).content == b"bytes"
    storage.delete(key)
    storage.delete(key)
    with pytest.raises(ObjectMissing):
        storage.get(key)


def test_a_url_cannot_be_bent_to_another_key(storage: Storage) -> None:
    key, other = image_key(uuid4(), 1, 0), image_key(uuid4(), 1, 0)
    for one in (key, other):
        storage.put(one, b"bytes", content_type="image/png")
    url = storage.url(key, ttl_s=60, filename="a.png", content_type="image/png")
    assert httpx.get(url.replace(key, other), timeout=60).status_code == 403


def test_urls_are_signed_for_the_public_address(settings: Settings) -> None:
    public = settings.model_copy(update={"s3_public_url": "https://pictures.example"})
    url = Storage(public).url("k", ttl_s=60, filename="a.png", content_type="image/png")
    assert url.startswith("https://pictures.example/")


def test_a_dead_store_is_our_error(settings: Settings) -> None:
    with pytest.raises(StorageUnavailable):
        Storage(settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:1"})).ping()
