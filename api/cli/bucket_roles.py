"""Roles of S3 keys: each process of the farm has a policy of its own (deploy/s3-policy)."""

from enum import StrEnum


class Role(StrEnum):
    """The process that an S3 key is for."""

    WORKER = "worker"
    API = "api"
    COURIER = "courier"
