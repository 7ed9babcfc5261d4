from pathlib import Path

import pytest

from shared.settings import Settings

ROOT = Path(__file__).parents[3]


def documented() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_every_setting_is_documented_and_nothing_else() -> None:
    fields = {f"FARM_{name.upper()}" for name in Settings.model_fields}
    assert not fields - set(documented()), ".env.example lacks a setting"
    assert not set(documented()) - fields, ".env.example has a setting that there is not"


def test_the_documented_values_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in documented():
        monkeypatch.delenv(name, raising=False)
    defaults = Settings()
    for name, value in documented().items():
        monkeypatch.setenv(name, value)
    assert Settings() == defaults, ".env.example shows another default"


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_DATABASE_URL", "postgresql://u:hunter2@h/d")
    monkeypatch.setenv("FARM_S3_SECRET_ACCESS_KEY", "hunter3")
    assert "hunter" not in repr(Settings())
