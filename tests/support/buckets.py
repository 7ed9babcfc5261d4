"""Buckets of the real object store; the farm itself never makes one."""

from shared.errors import StorageUnavailable
from shared.infra.storage import Storage


def ensured(storage: Storage) -> Storage:
    """Create the bucket of a storage unless it exists."""
    try:
        storage.ping()
    except StorageUnavailable:
        storage._client.create_bucket(Bucket=storage._bucket)
    return storage
