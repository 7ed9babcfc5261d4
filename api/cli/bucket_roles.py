"""Roles of S3 keys: each process of the farm, and who pushes weights, has a policy of its own (deploy/s3-policy)."""

from enum import StrEnum


class Role(StrEnum):
    """The process, or the person, that an S3 key is for."""

    WORKER = "worker"
    API = "api"
    COURIER = "courier"
    LIBRARIAN = "librarian"
