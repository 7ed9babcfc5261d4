"""Settings of the farm, from `FARM_*` environment variables. `.env.example` explains each field.

An entry point reads them once and passes them on; importing this module reads no environment.
"""

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.redis_address import RedisAddress

T = TypeVar("T", str, SecretStr)


def _spelled(*schemes: str) -> AfterValidator:
    """Accept URLs of these schemes. The error never repeats the URL: it may contain a password."""

    def check(url: T) -> T:
        text = url if isinstance(url, str) else url.get_secret_value()
        if not text.startswith(tuple(f"{scheme}://" for scheme in schemes)):
            raise ValueError(f"this is not a URL like {schemes[0]}://...")
        return url

    return AfterValidator(check)


# Segments that mean themselves in every URL.
PREFIX = r"(?:/[A-Za-z0-9._~-]*[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+"
_HOST_NAME = re.compile(r"\*|(?:\*\.)?[A-Za-z0-9_.-]+|[0-9A-Fa-f:.]+")


def words(text: str) -> list[str]:
    """Return the items of a list that is separated by commas or blanks."""
    return text.replace(",", " ").split()


def _prefix(path: str) -> str:
    path = path.rstrip("/")
    if path and not re.fullmatch(PREFIX, path):
        raise ValueError("this is not a path like /sd")
    return path


def _host_names(text: str) -> str:
    for word in words(text):
        if not _HOST_NAME.fullmatch(word):
            raise ValueError(
                f"{word!r} is not a name like farm.example or *.example.com, without scheme, port and path"
            )
    return text


def _networks(text: str) -> str:
    for word in words(text):
        try:
            ip_network("::/0" if word == "*" else word, strict=False)
        except ValueError:
            raise ValueError(f"{word!r} is not an address or network like 10.0.0.0/8, nor *") from None
    return text


def _leads_to_redis(url: SecretStr) -> SecretStr:
    RedisAddress.parse(url.get_secret_value())
    return url


DatabaseUrl = Annotated[SecretStr, _spelled("postgresql", "postgres", "postgresql+psycopg")]
HttpUrl = Annotated[str, _spelled("http", "https")]
RedisUrl = Annotated[SecretStr, AfterValidator(_leads_to_redis)]
Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    """The settings of one process. Durations are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="FARM_", env_ignore_empty=True, extra="ignore", frozen=True)

    # Where the parts are.
    database_url: DatabaseUrl = SecretStr("postgresql+psycopg://farm:farm@127.0.0.1:5432/farm")
    redis_url: RedisUrl = SecretStr("redis://127.0.0.1:6379/0")
    s3_endpoint_url: HttpUrl | None = None
    s3_public_url: HttpUrl | None = None
    s3_region: str = "us-east-1"
    s3_bucket: str = "farm"
    s3_access_key_id: str | None = None
    s3_secret_access_key: SecretStr | None = None

    # The gpu worker.
    checkpoint_dir: Path | None = None
    checkpoint: str | None = None
    preload: str | None = None
    lora_dir: Path | None = None
    embedding_dir: Path | None = None
    vae_dir: Path | None = None
    safety_checker: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    batching: Literal["continuous", "strict"] = "continuous"
    max_samples: Annotated[int, Field(ge=2)] = 16
    profile_seconds: Annotated[float, Field(ge=0)] = 20.0
    channels_last: bool | Literal["auto"] = "auto"
    compile: bool = False
    cache_dir: Path | None = None
    ram_bytes: Annotated[int, Field(ge=0)] | None = None
    vram_bytes: Annotated[int, Field(ge=0)] | None = None
    weights_cache_bytes: Annotated[int, Field(ge=0)] | None = None
    lora_memory_bytes: Annotated[int, Field(ge=0)] | None = None
    preview_seconds: Annotated[float, Field(ge=0)] = 1.0
    preview_decoder: Path | None = None
    hang_seconds: Seconds = 120.0
    canary_seconds: Annotated[float, Field(ge=0)] = 3600.0
    preemption_file: Path | None = None
    preemption_url: HttpUrl | None = None

    # The life of a job.
    lease_seconds: Seconds = 20.0
    heartbeat_seconds: Seconds = 5.0
    progress_seconds: Seconds = 0.25
    max_attempts: Annotated[int, Field(ge=1)] = 3
    retry_seconds: Annotated[float, Field(ge=0)] = 2.0
    upload_seconds: Annotated[float, Field(ge=0)] = 600.0
    run_seconds: Annotated[float, Field(ge=0)] = 3600.0
    snapshot_seconds: Annotated[float, Field(ge=0)] = 5.0
    drain_seconds: Annotated[float, Field(ge=0)] = 25.0
    rescue_seconds: Seconds = 2.0

    # The api.
    auth: Literal["auto", "keys", "none"] = "auto"
    max_queued: Annotated[int, Field(ge=1)] = 100_000
    admin_key: Annotated[SecretStr, Field(min_length=32)] | None = None
    max_body_bytes: Annotated[int, Field(ge=1024)] = 32 * 1024 * 1024
    image_url_seconds: Seconds = 3600.0
    image_delivery: Literal["redirect", "proxy"] = "redirect"
    default_checkpoint: str | None = None
    connect_seconds: Seconds = 3.0
    cors_origins: str = ""
    allowed_hosts: Annotated[str, AfterValidator(_host_names)] = ""
    root_path: Annotated[str, AfterValidator(_prefix)] = ""
    trusted_proxies: Annotated[str, AfterValidator(_networks)] = "127.0.0.1, ::1"
    call_seconds: Seconds = 3600.0
    keep_abandoned: bool = False
    styles_file: Path | None = None

    # What the farm calls outside for its clients.
    allow_private_urls: bool = False
    fetch_seconds: Seconds = 10.0
    webhook_progress_seconds: Seconds = 5.0
    max_webhook_urls: Annotated[int, Field(ge=1)] = 200
    webhook_suspend_seconds: Seconds = 86_400.0
    webhook_probe_seconds: Seconds = 900.0
    event_retention_seconds: Seconds = 30 * 86_400.0
    retention_days: Annotated[float, Field(ge=0)] = 0.0

    # Scaling and watching.
    target_wait_seconds: Seconds = 60.0
    min_workers: Annotated[int, Field(ge=0)] = 0
    max_workers: Annotated[int, Field(ge=1)] = 1000
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    metrics_key: Annotated[SecretStr, Field(min_length=16)] | None = None

    log_format: Literal["json", "console"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    access_log: bool = False


def load(**given: Any) -> Settings:
    """Read the settings; on an error exit with one line that names the wrong variables.

    `given` overrides the environment.
    """
    try:
        return Settings(**given)
    except ValidationError as error:
        wrong = "; ".join(
            f"FARM_{'_'.join(map(str, one['loc'])).upper()}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors()
        )
        raise SystemExit(f"farm: {wrong} (.env.example explains every setting)") from None
