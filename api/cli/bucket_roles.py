"""The processes of the farm that work in the bucket: an S3 key is for one of them."""

from enum import StrEnum


class Role(StrEnum):
    """Whose work a key is for."""

    WORKER = "worker"
    API = "api"
    COURIER = "courier"
