"""What is wrong with a setting or a store, said in one line that names the fix and repeats no secret."""

from pathlib import Path

import pytest
import torch
from botocore.exceptions import ClientError

from api.a1111 import styles
from shared.errors import NoDevice, StorageUnavailable
from shared.infra.storage import ADVICE, Storage
from shared.settings import Settings, load
from worker import device


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FARM_DATABASE_URL", "nonsense:s3same"),
        ("FARM_DATABASE_URL", "mysql://farm:s3same@db/farm"),
        ("FARM_REDIS_URL", "http://:s3same@redis"),
        ("FARM_S3_ENDPOINT_URL", "s3same:9000"),
        ("FARM_S3_PUBLIC_URL", "ftp://s3same"),
        ("FARM_PREEMPTION_URL", "s3same"),
        ("FARM_LEASE_SECONDS", "-1"),
        ("FARM_DEVICE", "tpu"),
        ("FARM_ADMIN_KEY", "s3same"),
    ],
)
def test_a_bad_setting_ends_a_process_with_its_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=f"^farm: {name}: .*example") as ended:
        load()
    assert "s3same" not in str(ended.value)
    assert "\n" not in str(ended.value)


def test_styles_that_cannot_be_read_end_a_process_with_the_settings_name(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(
            SystemExit, match=r"^farm: FARM_STYLES_FILE: .* cannot be read .*; name a CSV file"
        ) as ended:
            styles.check(path)
        assert str(path) in str(ended.value)
        assert "\n" not in str(ended.value)
    (tmp_path / "styles.csv").write_text("name,prompt,negative_prompt\n")
    styles.check(tmp_path / "styles.csv")
    styles.check(None)


@pytest.mark.parametrize(("code", "advice"), ADVICE.items())
def test_a_refusing_store_is_told_of_with_the_fix(monkeypatch: pytest.MonkeyPatch, code: str, advice: str) -> None:
    storage = Storage(Settings())

    def refuse(**_: object) -> None:
        raise ClientError({"Error": {"Code": code, "Message": "no"}}, "PutObject")

    monkeypatch.setattr(storage._client, "put_object", refuse)
    with pytest.raises(StorageUnavailable) as said:
        storage.put("jobs/x", b"", content_type="image/png")
    assert str(said.value).endswith(f"; {advice}.")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_driver_is_named() -> None:
    with pytest.raises(NoDevice, match="nvidia-smi"):
        device.chosen_device(Settings(device="cuda"))
