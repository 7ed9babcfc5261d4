"""What a running api says of requests: nothing unless it is asked to, and never what stands behind the question mark."""

import json
from pathlib import Path

import httpx
import pytest

from deploy.standalone import ports
from tests.support import parts
from tests.support.waiting import until

ANY_SERVER = ("-m", "uvicorn", "--factory", "--no-proxy-headers", "api.main:create_app", "--port")


@pytest.mark.parametrize(
    ("server", "asked_for", "level"),
    [(parts.API, "false", "info"), (parts.API, "true", "debug"), (ANY_SERVER, "false", "info")],
    ids=["by default", "asked for", "another server"],
)
@pytest.mark.usefixtures("settings", "announced")
def test_requests_are_logged_on_demand_without_their_query(
    server: tuple[str, ...], asked_for: str, level: str, tmp_path: Path
) -> None:
    port = str(ports.pick("127.0.0.1"))
    changes = {"FARM_ACCESS_LOG": asked_for, "FARM_LOG_LEVEL": level, "FARM_LOG_FORMAT": "json", "FARM_AUTH": "none"}
    with parts.running((*server, port), tmp_path, changes), httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
        assert until(lambda: _is_up(http))
        assert http.get("/v1/jobs", params={"prompt": "s3cret", "api_key": "farm_s3cret"}).status_code == 200
        assert http.get("/readyz?s3cret").status_code == 200
        assert http.get("/v1/jobs/", params={"prompt": "s3cret"}).status_code == 307
    said = (tmp_path / "stdout").read_text() + (tmp_path / "stderr").read_text()
    assert "s3cret" not in said
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    answered = [(line["method"], line["path"], line["status"]) for line in lines if line["event"] == "request.answered"]
    wanted = [("GET", "/v1/jobs", 200), ("GET", "/readyz", 200), ("GET", "/v1/jobs/", 307)]
    assert [one for one in answered if one[1] != "/healthz"] == (wanted if asked_for == "true" else [])
    if asked_for == "false":
        assert "/v1/jobs" not in said


def _is_up(http: httpx.Client) -> bool:
    try:
        return http.get("/healthz").is_success
    except httpx.TransportError:
        return False
