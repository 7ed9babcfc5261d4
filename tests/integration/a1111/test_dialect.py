"""The dialect of AUTOMATIC1111's API against a running farm on the demo checkpoint."""

import asyncio
import base64
import io
import json
import socket
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageChops
from redis import Redis

from api.a1111 import middleware
from api.a1111.requests import Txt2Img
from api.auth import keys
from api.auth.keys import NewKey, Scope
from api.main import create_app
from shared.files import checkpoints
from shared.files.checkpoints import CheckpointFile
from shared.fleet import holdings, registry
from shared.fleet.holdings import Holding, Tier
from shared.infra.db import Database
from shared.infra.events import RESCAN_CHANNEL, Listener
from shared.infra.storage import Storage, image_key
from shared.settings import Settings
from tests.support import kin, studio
from tests.support.waiting import LIMIT_S, until
from tests.support.workshop import serving, working

SMALL: dict[str, Any] = {
    "prompt": "a red circle on a blue background",
    "steps": 2,
    "width": 64,
    "height": 64,
    "seed": 7,
}

INFO_KEYS = (
    *(
        "prompt",
        "all_prompts",
        "negative_prompt",
        "all_negative_prompts",
        "seed",
        "all_seeds",
        "subseed",
        "all_subseeds",
    ),
    *("subseed_strength", "width", "height", "sampler_name", "cfg_scale", "steps", "batch_size", "restore_faces"),
    *("face_restoration_model", "sd_model_name", "sd_model_hash", "sd_vae_name", "sd_vae_hash", "seed_resize_from_w"),
    *(
        "seed_resize_from_h",
        "denoising_strength",
        "extra_generation_params",
        "index_of_first_image",
        "infotexts",
        "styles",
    ),
    *("job_timestamp", "clip_skip", "is_using_inpainting_conditioning", "version"),
)


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> CheckpointFile:
    """A checkpoint whose pictures are the demo's with their channels in turn."""
    return kin.recolored(tmp_path_factory.mktemp("kin"), "turned", (1, 2, 0))


@pytest.fixture(scope="module")
def address(engines: Settings, turned: CheckpointFile) -> Iterator[str]:
    with working(engines, others=[turned]), serving(engines) as address:
        yield address


@pytest.fixture
def farm(address: str, announced: str, redis: Redis) -> Iterator[httpx.Client]:
    assert announced
    assert redis.ping()
    with httpx.Client(base_url=address, timeout=LIMIT_S) as client:
        yield client


SHELF = "shelf"
THREADS = 40  # of an api process


@pytest.fixture
def idle(engines: Settings, announced: str, db: Database) -> Settings:
    """The settings of a farm whose jobs wait: the worker of their checkpoint is busy for ever."""
    assert announced
    with db.transaction() as session:
        registry.announce(
            session, worker_id="gpu1@test", checkpoint=SHELF, size_bytes=1, hostname="test", device="test", slots=1
        )
    return engines.model_copy(update={"default_checkpoint": SHELF})


def picture(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def coded(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, format="PNG")
    return base64.b64encode(out.getvalue()).decode()


def rendered(farm: httpx.Client, path: str = "txt2img", **fields: Any) -> dict[str, Any]:
    answer = farm.post(f"/sdapi/v1/{path}", json={**SMALL, **fields})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_the_script_that_users_have_runs_unchanged(farm: httpx.Client) -> None:
    key = ("admin", "any-key")
    switched = farm.post("/sdapi/v1/options", json={"sd_model_checkpoint": "farm-demo.safetensors"}, auth=key)
    assert (switched.status_code, switched.content) == (200, b"null")
    body = {"prompt": "a red circle on a blue background", "steps": 2, "width": 64, "height": 64}
    answer = farm.post("/sdapi/v1/txt2img", json=body, auth=key)
    assert answer.status_code == 200, answer.text
    result = answer.json()
    assert set(result) == {"images", "parameters", "info"}
    shown = picture(result["images"][0])
    assert (shown.format, shown.size) == ("PNG", (64, 64))
    info = json.loads(result["info"])
    assert shown.info["parameters"] == info["infotexts"][0]
    assert info["infotexts"][0].endswith("Model: farm-demo, Version: v1.10.1")
    job = farm.get(f"/v1/jobs/{answer.headers['x-farm-job-id']}").json()
    assert (job["state"], job["seeds"]) == ("succeeded", info["all_seeds"])


# The seventeen rules of compatibility, in their order.


def test_1_trailing_slashes_are_served_without_a_redirect(farm: httpx.Client) -> None:
    for path in ("/sdapi/v1/options/", "/sdapi/v1/samplers/", "/internal/ping/"):
        assert farm.get(path).status_code == 200
    assert farm.post("/sdapi/v1/txt2img/", json=SMALL).status_code == 200


def test_1_the_root_answers(farm: httpx.Client) -> None:
    for verb in ("GET", "HEAD"):
        assert farm.request(verb, "/", follow_redirects=True).status_code == 200


def test_2_json_without_a_content_type(farm: httpx.Client) -> None:
    answer = farm.post("/sdapi/v1/txt2img", content=json.dumps(SMALL).encode())
    assert answer.status_code == 200, answer.text
    assert "content-type" not in answer.request.headers


def test_3_nulls_everywhere(farm: httpx.Client) -> None:
    nulls: dict[str, Any] = dict.fromkeys(Txt2Img.model_fields)
    assert rendered(farm, **{**nulls, **SMALL, "steps": "2", "seed": "7", "batch_size": 1.9, "unheard_of": {"a": 1}})


def test_4_all_options_may_be_posted_back(farm: httpx.Client) -> None:
    options = farm.get("/sdapi/v1/options").json()
    assert options["sd_model_checkpoint"] == "farm-demo.safetensors"
    assert options["samples_format"] == "png"
    assert "forge_preset" not in options
    answer = farm.post("/sdapi/v1/options", json=options)
    assert (answer.status_code, answer.content) == (200, b"null")
    assert farm.get("/sdapi/v1/options").json() == options


def test_5_and_info_has_all_keys_with_their_types(farm: httpx.Client) -> None:
    body = rendered(farm, batch_size=2, n_iter=2, negative_prompt="blurry", cfg_scale=7)
    info = json.loads(body["info"])
    assert tuple(info) == INFO_KEYS
    assert (info["all_seeds"], info["seed"], info["batch_size"]) == ([7, 8, 9, 10], 7, 2)
    assert len(info["all_subseeds"]) == len(info["all_prompts"]) == len(info["infotexts"]) == len(body["images"]) == 4
    integers = ("seed", "subseed", "subseed_strength", "width", "height", "steps", "batch_size", "clip_skip")
    assert all(type(info[name]) is int for name in (*integers, "index_of_first_image", "seed_resize_from_w"))
    assert type(info["cfg_scale"]) is float
    assert (info["restore_faces"], info["denoising_strength"], info["styles"]) == (False, None, [])
    assert len(info["job_timestamp"]) == 14
    for text, image in zip(info["infotexts"], body["images"], strict=True):
        assert not image.startswith("data:")
        assert picture(image).info["parameters"] == text
    assert (
        body["parameters"]
        == Txt2Img.model_validate(
            {**SMALL, "batch_size": 2, "n_iter": 2, "negative_prompt": "blurry", "cfg_scale": 7}
        ).echo()
    )


def test_6_nothing_is_answered_by_an_empty_body(farm: httpx.Client) -> None:
    for path in ("refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings", "skip"):
        assert farm.post(f"/sdapi/v1/{path}").content == b"null"
    for path in ("interrupt", "unload-checkpoint", "reload-checkpoint"):
        assert farm.post(f"/sdapi/v1/{path}").json() == {}


def test_7_idle_progress(farm: httpx.Client) -> None:
    rendered(farm)
    idle = farm.get("/sdapi/v1/progress", params={"skip_current_image": "false"}).json()
    assert (idle["progress"], idle["eta_relative"], idle["current_image"]) == (0, 0, None)
    assert (idle["state"]["job_count"], idle["state"]["job"], idle["state"]["job_timestamp"]) == (0, "", "0")


def test_8_junk_authorization_is_ignored_where_there_are_no_keys(farm: httpx.Client) -> None:
    for junk in ("Basic", "Basic dW5kZWZpbmVk", "Bearer x", "?"):
        assert farm.get("/sdapi/v1/options", headers={"Authorization": junk}).status_code == 200


def test_9_an_unknown_checkpoint_is_refused_by_name(farm: httpx.Client) -> None:
    refused = farm.post("/sdapi/v1/options", json={"sd_model_checkpoint": "nope.safetensors"})
    assert refused.status_code == 500
    assert refused.json() == {
        "error": "RuntimeError",
        "detail": "",
        "body": "",
        "errors": "model 'nope.safetensors' not found",
    }
    assert farm.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "farm-demo.safetensors"
    body = {**SMALL, "override_settings": {"sd_model_checkpoint": "nope"}}
    assert farm.post("/sdapi/v1/txt2img", json=body).json()["errors"] == "model 'nope' not found"


def test_9_titles_carry_hashes_where_workers_have_told_them(farm: httpx.Client, db: Database) -> None:
    sha256 = checkpoints.digest(checkpoints.inspect(studio.DEMO))
    demo: dict[str, Any] = {"worker_id": "gpu0@test", "checkpoint": "farm-demo", "hostname": "test", "device": "test"}
    with db.transaction() as session:
        registry.announce(session, **demo, size_bytes=1, slots=4, sha256=sha256)
    (listed,) = farm.get("/sdapi/v1/sd-models").json()
    assert listed["title"] == f"farm-demo.safetensors [{sha256[:10]}]"
    assert (listed["model_name"], listed["hash"], listed["sha256"]) == ("farm-demo", sha256[:10], sha256)
    for wanted in (listed["title"], listed["model_name"], "farm-demo.safetensors", sha256, sha256[:10]):
        farm.post("/sdapi/v1/options", json={"sd_model_checkpoint": wanted}).raise_for_status()
        options = farm.get("/sdapi/v1/options").json()
        assert (options["sd_model_checkpoint"], options["sd_checkpoint_hash"]) == (listed["title"], sha256)
    info = json.loads(rendered(farm)["info"])
    assert info["sd_model_hash"] == sha256[:10]
    assert f"Size: 64x64, Model hash: {sha256[:10]}, Model: farm-demo, " in info["infotexts"][0]


def test_9_a_second_pass_is_rendered_with_the_checkpoint_of_its_name(
    farm: httpx.Client, db: Database, turned: CheckpointFile
) -> None:
    sha256 = checkpoints.digest(turned)
    with db.transaction() as session:
        holdings.hold(session, "gpu0@test", [Holding("turned", turned.size_bytes, Tier.DISK, 1.0, sha256)])
    fix: dict[str, Any] = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.6, "hr_upscaler": "Latent"}
    plain = rendered(farm, **fix, hr_checkpoint_name="Use same checkpoint")
    other = rendered(farm, **fix, hr_checkpoint_name="turned.safetensors")
    demos, pixels = (np.asarray(picture(one["images"][0])) for one in (plain, other))
    assert (pixels == demos[..., [1, 2, 0]]).all()
    title = f"turned [{sha256[:10]}]"
    for made, told in ((plain, None), (other, title)):
        info = json.loads(made["info"])
        assert info["extra_generation_params"].get("Hires checkpoint") == told
        assert (f"Hires checkpoint: {title}, " in info["infotexts"][0]) == (told is not None)
    again = farm.post("/sdapi/v1/txt2img", json={"infotext": json.loads(other["info"])["infotexts"][0]}).json()
    assert (np.asarray(picture(again["images"][0])) == pixels).all()


def test_9_whatever_the_list_calls_a_checkpoint_chooses_it(farm: httpx.Client, db: Database) -> None:
    """By title, name, file or hash; those that no worker can load are not on the list, and are refused with the reason."""
    library = {f"look-{number}.v{number}": f"{number}abcdef0" * 8 for number in range(3)}
    with db.transaction() as session:
        held = [Holding(name, 1, Tier.DISK, 1.0, sha256) for name, sha256 in library.items()]
        unread = Holding("unread", 1, Tier.BUCKET, 9.0)
        broken = Holding("broken", 1, Tier.DISK, 1.0, "f" * 64, refused="broken.safetensors: truncated.")
        holdings.hold(session, "gpu0@test", [*held, unread, broken])
    listed = {one["model_name"]: one for one in farm.get("/sdapi/v1/sd-models").json()}
    assert listed.keys() == {*library, "unread", "farm-demo"}
    assert (listed["unread"]["title"], listed["unread"]["sha256"]) == ("unread.safetensors", None)
    for name, one in listed.items():
        hashes = [one["sha256"], one["hash"], one["sha256"][:8]] if one["sha256"] else []
        for wanted in (*hashes, one["filename"], name.upper(), name, one["title"]):
            farm.post("/sdapi/v1/options", json={"sd_model_checkpoint": wanted}).raise_for_status()
            assert farm.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == one["title"], wanted
        once = {"sd_model_checkpoint": listed["look-2.v2"]["hash"]}
        for fields, meant in (({}, name), ({"override_settings": once}, "look-2.v2")):
            queued = farm.post("/agent-scheduler/v1/queue/txt2img", json={**SMALL, **fields})
            queued.raise_for_status()
            (job, *_) = farm.get("/v1/jobs?limit=1").json()["jobs"]
            assert job["params"]["checkpoint"] == meant
    why = "cannot be loaded: broken.safetensors: truncated."
    for lost, said in (("broken", why), ("broken.safetensors [ffffffffff]", why), ("f" * 10, "not found")):
        chosen: dict[str, Any] = {"sd_model_checkpoint": lost}
        for path, body in (("options", chosen), ("txt2img", {**SMALL, "override_settings": chosen})):
            refused = farm.post(f"/sdapi/v1/{path}", json=body)
            assert (refused.status_code, refused.json()["errors"]) == (500, f"model {lost!r} {said}")


def test_9_a_title_of_before_its_hash_was_known_stays_chosen(farm: httpx.Client, db: Database) -> None:
    with db.transaction() as session:
        holdings.hold(session, "gpu0@test", [Holding("unread", 1, Tier.DISK, 1.0)])
    farm.post("/sdapi/v1/options", json={"sd_model_checkpoint": "unread.safetensors"}).raise_for_status()
    with db.transaction() as session:
        holdings.hold(session, "gpu0@test", [Holding("unread", 1, Tier.RAM, 0.1, "ab" * 32)])
    options = farm.get("/sdapi/v1/options").json()
    assert (options["sd_model_checkpoint"], options["sd_checkpoint_hash"]) == (
        "unread.safetensors [ababababab]",
        "ab" * 32,
    )


def test_9_refreshing_has_workers_look_through_their_folders(farm: httpx.Client, redis: Redis) -> None:
    asked = Event()
    news = Listener(redis, lambda _: None, rescan=asked.set)

    def listening() -> int:
        return int(dict(redis.pubsub_numsub(RESCAN_CHANNEL))[RESCAN_CHANNEL])

    before = listening()
    news.start()
    try:
        assert until(lambda: listening() > before, LIMIT_S)
        assert farm.post("/sdapi/v1/refresh-checkpoints").content == b"null"
        assert asked.wait(LIMIT_S)
    finally:
        news.stop()


def test_10_an_unknown_sampler(farm: httpx.Client) -> None:
    refused = farm.post("/sdapi/v1/txt2img", json={**SMALL, "sampler_name": "nope"})
    assert (refused.status_code, refused.json()["detail"]) == (400, "Sampler not found")


def test_11_lists_that_clients_rely_on(farm: httpx.Client) -> None:
    assert farm.get("/sdapi/v1/upscalers").json()[0]["name"] == "None"
    assert farm.get("/sdapi/v1/scripts").json() == {"txt2img": [], "img2img": []}
    first = farm.get("/sdapi/v1/samplers").json()[0]
    assert first == {"name": "DPM++ 2M", "aliases": ["k_dpmpp_2m"], "options": {"scheduler": "karras"}}
    assert [one["name"] for one in farm.get("/sdapi/v1/schedulers").json()][:3] == ["automatic", "uniform", "karras"]
    refused = farm.post("/sdapi/v1/txt2img", json={**SMALL, "alwayson_scripts": {"x": {"args": [True]}}})
    assert (refused.status_code, refused.json()["detail"]) == (422, "always on script x not found")
    assert rendered(farm, alwayson_scripts={"ADetailer": {"args": [False]}, "x": {"args": []}})


def test_12_a_call_that_takes_too_long_is_answered_with_its_job(idle: Settings) -> None:
    with TestClient(create_app(idle.model_copy(update={"call_seconds": 0.2}))) as farm:
        late = farm.post("/sdapi/v1/txt2img", json=SMALL)
        assert late.status_code == 504
        assert set(late.json()) == {"error", "detail", "body", "errors"}
        assert farm.get(f"/v1/jobs/{late.headers['x-farm-job-id']}").json()["state"] == "queued"


@contextmanager
def calling(address: str, wanted: dict[str, Any]) -> Iterator[None]:
    """A call whose client hangs up when the block ends."""
    url, body = urlsplit(address), json.dumps(wanted).encode()
    head = f"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((str(url.hostname), url.port or 80)) as client:
        client.sendall(head.encode() + body)
        yield


@pytest.mark.parametrize(("keeps", "state"), [(False, "canceled"), (True, "queued")])
def test_13_hanging_up_cancels_the_job_unless_it_is_kept(idle: Settings, keeps: bool, state: str) -> None:
    settings = idle.model_copy(update={"keep_abandoned": keeps})
    with serving(settings) as address, httpx.Client(base_url=address, timeout=LIMIT_S) as farm:
        with calling(address, SMALL):
            assert until(lambda: bool(farm.get("/v1/jobs").json()["jobs"]), 60)
        (job,) = farm.get("/v1/jobs").json()["jobs"]
        # What is canceled wakes this wait; what is kept lets it run out.
        wait_s = 1 if keeps else 30
        assert farm.get(f"/v1/jobs/{job['id']}?wait={wait_s}").json()["state"] == state


def test_13_hanging_up_stops_what_is_being_rendered(farm: httpx.Client) -> None:
    long = {**SMALL, "steps": 150, "width": 512, "height": 512}
    with calling(str(farm.base_url), long):
        _until(farm, lambda seen: seen["progress"] > 0)
    (job,) = farm.get("/v1/jobs").json()["jobs"]
    assert farm.get(f"/v1/jobs/{job['id']}?wait=30").json()["state"] == "canceled"


def test_14_the_same_task_again_is_the_same_job(farm: httpx.Client) -> None:
    body = {**SMALL, "force_task_id": "task(abc)", "seed": -1}
    first, again = (farm.post("/sdapi/v1/txt2img", json=body) for _ in range(2))
    assert first.headers["x-farm-job-id"] == again.headers["x-farm-job-id"]
    assert first.headers["x-farm-task-id"] == "task(abc)"
    assert first.json() == again.json()
    other = farm.post("/sdapi/v1/txt2img", json={**body, "steps": 1})
    assert other.headers["x-farm-job-id"] != first.headers["x-farm-job-id"]


def test_14_the_same_task_at_the_same_instant_is_one_job(farm: httpx.Client) -> None:
    body = {**SMALL, "seed": -1, "force_task_id": "task(twice)"}

    def call(_: int) -> tuple[str, str]:
        answer = farm.post("/sdapi/v1/txt2img", json=body)
        assert answer.status_code == 200, answer.text
        return answer.headers["x-farm-job-id"], answer.json()["images"][0]

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(call, range(8)))) == 1


def test_15_limits_are_refused_in_fastapis_shape(farm: httpx.Client) -> None:
    refused = farm.post("/sdapi/v1/txt2img", json={"width": 10_000, "height": 10_000, "steps": 999})
    assert refused.status_code == 422
    assert [error["loc"] for error in refused.json()["detail"]] == [
        ["body", "steps"],
        ["body", "width"],
        ["body", "height"],
    ]
    assert all(set(error) == {"loc", "msg", "type"} for error in refused.json()["detail"])
    assert farm.post("/sdapi/v1/txt2img", json={"steps": "many"}).json()["detail"][0]["loc"] == ["body", "steps"]


def test_16_no_init_image_is_fetched_from_inside(farm: httpx.Client) -> None:
    for url in ("http://127.0.0.1:1/x.png", "http://169.254.169.254/latest", "file:///etc/passwd"):
        refused = farm.post("/sdapi/v1/img2img", json={**SMALL, "init_images": [url]})
        assert refused.status_code == 422, url
        assert "root:" not in refused.text


def test_17_no_flag_is_a_secret(farm: httpx.Client) -> None:
    flags = farm.get("/sdapi/v1/cmd-flags").json()
    assert (flags["api"], flags["nowebui"], flags["api_auth"]) == (True, True, None)
    assert "farm_" not in json.dumps(flags)


# What else clients rely on.


def test_an_image_of_a_batch_is_the_single_image_of_its_seed(farm: httpx.Client) -> None:
    batch = rendered(farm, batch_size=2, n_iter=2, sampler_name="Euler a")
    alone = rendered(farm, seed=9, sampler_name="Euler a")
    difference = ImageChops.difference(picture(batch["images"][2]), picture(alone["images"][0]))
    assert max(difference.tobytes()) <= 2


def test_image_to_image_repeats_a_picture_and_keeps_it_out_of_the_echo(farm: httpx.Client) -> None:
    first = rendered(farm)["images"][0]
    body = rendered(
        farm, "img2img", init_images=[f"data:image/png;base64,{first}"], batch_size=2, denoising_strength=0.4
    )
    assert len(body["images"]) == 2
    assert body["parameters"]["init_images"] is None
    assert json.loads(body["info"])["denoising_strength"] == 0.4
    assert "Denoising strength: 0.4" in json.loads(body["info"])["infotexts"][0]


def test_only_masked_gives_back_the_whole_picture(farm: httpx.Client) -> None:
    start, mask = Image.new("RGB", (128, 96), "blue"), Image.new("L", (128, 96), 0)
    mask.paste(255, (32, 32, 64, 64))
    body = rendered(farm, "img2img", init_images=[coded(start)], mask=coded(mask), inpainting_fill=1, mask_blur=0)
    shown = picture(body["images"][0])
    assert (shown.size, shown.getpixel((2, 2))) == ((128, 96), (0, 0, 255))
    assert "Inpaint area: Only masked" in shown.info["parameters"]


def test_no_pictures_on_request_and_a_sheet_in_front(farm: httpx.Client) -> None:
    assert rendered(farm, send_images=False)["images"] == []
    body = rendered(farm, batch_size=3, save_images=True)
    info = json.loads(body["info"])
    assert (len(body["images"]), info["index_of_first_image"], len(info["infotexts"])) == (4, 1, 4)
    assert picture(body["images"][0]).size == (128, 128)


def test_png_info_reads_what_was_written(farm: httpx.Client) -> None:
    body = rendered(farm, negative_prompt="blurry, dark", sampler_name="Euler a")
    read = farm.post("/sdapi/v1/png-info", json={"image": body["images"][0]}).json()
    assert read["info"] == json.loads(body["info"])["infotexts"][0]
    parts = read["parameters"]
    assert (parts["Prompt"], parts["Negative prompt"], parts["Seed"]) == (SMALL["prompt"], "blurry, dark", "7")
    assert (parts["Size-1"], parts["Sampler"], parts["Schedule type"]) == ("64", "Euler a", "Automatic")
    assert (parts["Masked content"], parts["Clip skip"]) == ("original", "1")
    assert "farm" in read["items"]
    blank = farm.post("/sdapi/v1/png-info", json={"image": coded(Image.new("RGB", (8, 8)))}).json()
    assert blank == {"info": "", "items": {}, "parameters": {}}


def test_the_text_makes_the_same_picture_again(farm: httpx.Client) -> None:
    first = rendered(farm, sampler_name="DPM++ 2M SDE Karras", cfg_scale=5.5)
    text = json.loads(first["info"])["infotexts"][0]
    again = farm.post("/sdapi/v1/txt2img", json={"infotext": text}).json()
    assert json.loads(again["info"])["infotexts"] == [text]
    assert picture(again["images"][0]).tobytes() == picture(first["images"][0]).tobytes()


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"upscaling_resize": 1.5}, (96, 48)),
        ({"resize_mode": 1, "upscaling_resize_w": 100, "upscaling_resize_h": 100}, (100, 100)),
        ({"resize_mode": 1, "upscaling_resize_w": 100, "upscaling_resize_h": 100, "upscaling_crop": False}, (100, 50)),
        ({"upscaler_1": "None"}, (64, 32)),
    ],
)
def test_enlarging(farm: httpx.Client, fields: dict[str, Any], size: tuple[int, int]) -> None:
    body = {"image": coded(Image.new("RGB", (64, 32), "red")), "upscaler_1": "Lanczos", **fields}
    answer = farm.post("/sdapi/v1/extra-single-image", json=body).json()
    assert (picture(answer["image"]).size, answer["html_info"][:3]) == (size, "<p>")


def test_what_cannot_be_enlarged(farm: httpx.Client) -> None:
    unknown = farm.post("/sdapi/v1/extra-single-image", json={"image": "aGk=", "upscaler_1": "ESRGAN_4x"})
    assert unknown.json()["errors"] == "could not find upscaler named ESRGAN_4x"
    assert farm.post("/sdapi/v1/extra-single-image", json={"upscaler_1": "Lanczos"}).status_code == 422
    over = {"image": coded(Image.new("RGB", (2000, 8))), "upscaler_1": "Nearest", "upscaling_resize": 8}
    assert farm.post("/sdapi/v1/extra-single-image", json=over).status_code == 422


@pytest.mark.parametrize(
    ("path", "body", "status", "detail"),
    [
        ("img2img", {"init_images": None}, 404, "Init image not found"),
        ("txt2img", {"script_name": "xyz"}, 422, "Script 'xyz' not found"),
        ("interrogate", {"image": "aGk=", "model": "clip"}, 404, "Model not found"),
        ("interrogate", {}, 404, "Image not found"),
    ],
)
def test_refusals_that_clients_compare(
    farm: httpx.Client, path: str, body: dict[str, Any], status: int, detail: str
) -> None:
    refused = farm.post(f"/sdapi/v1/{path}", json=body)
    assert refused.status_code == status
    assert refused.json() == {"error": "HTTPException", "detail": detail, "body": "", "errors": ""}


@pytest.mark.parametrize("image", ["not base64 !!", "aGVsbG8=", "data:image/png;base64,", "ftp://x/y"])
def test_a_picture_that_is_none(farm: httpx.Client, image: str) -> None:
    refused = farm.post("/sdapi/v1/img2img", json={**SMALL, "init_images": [image]})
    assert refused.status_code == 422
    assert "init_image" in refused.json()["detail"]


def test_bodies_that_are_none(farm: httpx.Client) -> None:
    for content in (b"", b"{", b"[]", b"null", b"\xff"):
        refused = farm.post("/sdapi/v1/txt2img", content=content)
        assert refused.status_code in {400, 422}, content
        assert "detail" in refused.json()
        assert refused.headers["content-type"] == "application/json"


def test_unknown_paths_and_verbs_are_fastapis(farm: httpx.Client) -> None:
    unknown = farm.get("/sdapi/v1/nope")
    assert (unknown.status_code, unknown.json()) == (404, {"detail": "Not Found"})
    wrong = farm.get("/sdapi/v1/txt2img")
    assert (wrong.status_code, wrong.json()) == (405, {"detail": "Method Not Allowed"})


def test_what_breaks_inside_keeps_the_shape(engines: Settings) -> None:
    app = create_app(engines)
    with TestClient(app, raise_server_exceptions=False) as broken:
        app.state.desk = None
        answer = broken.get("/sdapi/v1/sd-models")
    assert (answer.status_code, answer.json()["error"], answer.json()["detail"][:9]) == (
        500,
        "HTTPException",
        "The api f",
    )


def test_what_is_ignored_is_said_in_a_header(farm: httpx.Client) -> None:
    body = {**SMALL, "tiling": True, "override_settings": {"forge_inference_memory": 1}}
    answer = farm.post("/sdapi/v1/txt2img", json=body)
    assert answer.headers["x-farm-ignored"] == "tiling, override_settings.forge_inference_memory"


def test_progress_shows_the_call_and_interrupt_ends_it(farm: httpx.Client) -> None:
    long = {**SMALL, "steps": 150, "width": 512, "height": 512, "n_iter": 2, "force_task_id": "long"}
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(farm.post, "/sdapi/v1/txt2img", json=long)
        shown = _until(farm, lambda seen: seen["current_image"] is not None)
        assert 0.01 <= shown["progress"] < 1
        assert (shown["state"]["job_count"], shown["state"]["sampling_steps"]) == (2, 150)
        assert shown["state"]["job"] == "Batch 1 out of 2"
        assert picture(shown["current_image"]).size == (256, 256)
        named = farm.post("/internal/progress", json={"id_task": "long"}).json()
        assert (named["active"], named["queued"], named["completed"]) == (True, False, False)
        assert named["live_preview"].startswith("data:image/png;base64,")
        assert farm.post("/sdapi/v1/interrupt").json() == {}
        answer = call.result(timeout=LIMIT_S)
    assert answer.status_code == 200
    # What could last be seen stands for what was not finished.
    assert {picture(image).size for image in answer.json()["images"]} == {(512, 512)}
    assert farm.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0
    assert farm.post("/internal/progress", json={"id_task": "long"}).json()["completed"] is True


def test_skip_leaves_the_other_iterations(farm: httpx.Client) -> None:
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(
            farm.post, "/sdapi/v1/txt2img", json={**SMALL, "steps": 150, "width": 192, "height": 192, "n_iter": 2}
        )
        _until(farm, lambda seen: seen["progress"] > 0)
        assert farm.post("/sdapi/v1/skip").content == b"null"
        answer = call.result(timeout=LIMIT_S)
    states = {farm.get(f"/v1/jobs/{one}").json()["state"] for one in answer.headers["x-farm-job-id"].split(", ")}
    assert states == {"canceled", "succeeded"}
    assert json.loads(answer.json()["info"])["all_seeds"] == [7, 8]


def test_a_queue_for_later(farm: httpx.Client, storage: Storage) -> None:
    queue = "/agent-scheduler/v1"
    body = {**SMALL, "checkpoint": "farm-demo.safetensors", "n_iter": 2}
    task = farm.post(f"{queue}/queue/txt2img", json=body).json()["task_id"]
    job_ids = farm.get(f"{queue}/task/{task}").json()["data"]["job_ids"]
    for job_id in job_ids:
        assert farm.get(f"/v1/jobs/{job_id}?wait=30").json()["state"] == "succeeded"
    assert farm.get(f"{queue}/task/{task}").json()["data"]["status"] == "done"
    results = farm.get(f"{queue}/task/{task}/results").json()
    assert results["success"]
    shown = [picture(one["image"].removeprefix("data:image/png;base64,")) for one in results["data"]]
    assert [one.info["parameters"] for one in shown] == [one["infotext"] for one in results["data"]]
    packed = zipfile.ZipFile(io.BytesIO(farm.get(f"{queue}/task/{task}/results", params={"zip": "true"}).content))
    assert packed.namelist() == ["0.png", "1.png"]
    assert [one["id"] for one in farm.get(f"{queue}/history").json()["tasks"]] == [task]
    assert farm.get(f"{queue}/queue").json()["total_pending_tasks"] == 0
    assert farm.get(f"{queue}/task/nope").status_code == 404
    storage.delete(image_key(UUID(job_ids[0]), 1, 0))  # as while it is being deleted
    gone = farm.get(f"{queue}/task/{task}/results")
    assert (gone.status_code, job_ids[0] in gone.json()["detail"]) == (410, True)


def test_a_call_whose_job_was_deleted_is_rendered_again(farm: httpx.Client) -> None:
    first = farm.post("/sdapi/v1/txt2img", json={**SMALL, "force_task_id": "again"})
    job_id = first.headers["x-farm-job-id"]
    assert farm.delete(f"/v1/jobs/{job_id}").status_code == 204
    again = farm.post("/sdapi/v1/txt2img", json={**SMALL, "force_task_id": "again"})
    assert again.json()["images"] == first.json()["images"]
    assert again.headers["x-farm-job-id"] != job_id


def test_a_task_in_the_queue_can_be_canceled(idle: Settings) -> None:
    queue = "/agent-scheduler/v1"
    with TestClient(create_app(idle)) as farm:
        tasks = [farm.post(f"{queue}/queue/txt2img", json=SMALL).json()["task_id"] for _ in range(2)]
        assert farm.get("/internal/pending-tasks").json() == {"size": 2, "tasks": tasks}
        assert farm.get(f"{queue}/task/{tasks[1]}/position").json()["data"] == {"status": "pending", "position": 1}
        waiting = farm.post("/internal/progress", json={"id_task": tasks[1]}).json()
        assert (waiting["queued"], waiting["textinfo"]) == (True, "In queue: 2/2")
        assert farm.get(f"{queue}/task/{tasks[0]}/results").json() == {"success": False, "message": "Task is pending"}
        assert farm.delete(f"{queue}/task/{tasks[0]}").json()["success"]
        assert farm.get(f"{queue}/task/{tasks[0]}").json()["data"]["status"] == "interrupted"
        assert farm.get("/internal/pending-tasks").json()["tasks"] == [tasks[1]]


def test_styles_come_from_a_file(idle: Settings, tmp_path: Path) -> None:
    file = tmp_path / "styles.csv"
    file.write_text('name,prompt,negative_prompt\nwarm,"warm {prompt}",cold\n')
    with TestClient(create_app(idle.model_copy(update={"styles_file": file, "call_seconds": 0.1}))) as farm:
        known = farm.get("/sdapi/v1/prompt-styles").json()
        assert known == [{"name": "warm", "prompt": "warm {prompt}", "negative_prompt": "cold"}]
        late = farm.post("/sdapi/v1/txt2img", json={**SMALL, "styles": ["warm"]})
        job = farm.get(f"/v1/jobs/{late.headers['x-farm-job-id']}").json()
    assert (job["params"]["prompt"], job["params"]["negative_prompt"]) == (f"warm {SMALL['prompt']}", "cold")


def test_pages_of_other_origins(engines: Settings, announced: str) -> None:
    assert announced
    body, page = json.dumps({"sd_model_checkpoint": "farm-demo"}), {"Origin": "https://paint.example"}
    asking = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    with TestClient(create_app(engines)) as closed:
        # A body that a browser sends for any page without asking.
        refused = closed.post("/sdapi/v1/options", content=body, headers={**page, "Content-Type": "text/plain"})
        assert (refused.status_code, refused.json()["error"]) == (403, "HTTPException")
        assert "access-control-allow-origin" not in closed.options("/sdapi/v1/options", headers=asking).headers
        same = {"Origin": "http://testserver", "Content-Type": "text/plain"}
        assert closed.post("/sdapi/v1/options", content=body, headers=same).status_code == 200
    with TestClient(
        create_app(engines.model_copy(update={"cors_origins": "https://paint.example, https://b.example"}))
    ) as opened:
        allowed = opened.options("/sdapi/v1/options", headers=asking)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, page["Origin"])
        answer = opened.post("/sdapi/v1/options", content=body, headers=page)
        assert answer.headers["access-control-allow-origin"] == page["Origin"]


def test_the_documentation_has_a_section_of_its_own(farm: httpx.Client) -> None:
    paths = farm.get("/openapi.json").json()["paths"]
    assert paths["/sdapi/v1/txt2img"]["post"]["tags"] == ["AUTOMATIC1111"]
    assert "/sdapi/v1/progress" in paths


# Two callers with keys of their own.


@pytest.fixture
def callers(engines: Settings, announced: str, db: Database) -> Iterator[list[httpx.Client]]:
    """Two clients of a farm that asks for keys, which has a checkpoint besides the demo's, and a worker for the latter."""
    with db.transaction() as session:
        registry.announce(
            session, worker_id="gpu1@test", checkpoint=SHELF, size_bytes=1, hostname="test", device="test", slots=1
        )
        wanted = NewKey(name="n", scopes=frozenset({Scope.SUBMIT, Scope.READ}))
        tokens = [keys.create(session, wanted)[1].text for _ in range(2)]
    settings = engines.model_copy(update={"auth": "keys", "default_checkpoint": announced})
    with serving(settings) as address, ExitStack() as closing:
        opened = (httpx.Client(base_url=address, auth=("admin", token), timeout=LIMIT_S) for token in tokens)
        yield [closing.enter_context(client) for client in opened]


def test_8_every_route_asks_for_a_key_by_basic(callers: list[httpx.Client]) -> None:
    mine = callers[0]
    paths = mine.get("/openapi.json").json()["paths"]
    routes = [(path, verb) for path, item in paths.items() for verb in item if path.startswith(middleware.PATHS)]
    assert len(routes) > 40
    with httpx.Client(base_url=mine.base_url, timeout=LIMIT_S) as stranger:
        for path, verb in routes:
            refused = stranger.request(verb, path.replace("{task_id}", "x"))
            assert (refused.status_code, refused.json()["detail"]) == (401, "Not authenticated"), path
            assert refused.headers["www-authenticate"].startswith("Basic"), path
        wrong = stranger.get("/sdapi/v1/loras", auth=("admin", "wrong"))
        assert (wrong.status_code, wrong.json()["detail"]) == (401, "Incorrect username or password")


@pytest.mark.usefixtures("address")
def test_a_switch_of_checkpoint_is_ones_own(callers: list[httpx.Client]) -> None:
    mine, other = callers
    assert mine.post("/sdapi/v1/options", json={"sd_model_checkpoint": f"{SHELF}.safetensors"}).status_code == 200
    assert mine.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == f"{SHELF}.safetensors"
    assert other.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "farm-demo.safetensors"
    task = mine.post("/agent-scheduler/v1/queue/txt2img", json=SMALL).json()["task_id"]
    assert json.loads(rendered(other)["info"])["sd_model_name"] == "farm-demo"
    (waiting,) = mine.get("/v1/jobs").json()["jobs"]
    assert (waiting["params"]["checkpoint"], waiting["state"]) == (SHELF, "queued")
    # For one call only, whatever the session uses.
    once = {"sd_model_checkpoint": "farm-demo"}
    assert json.loads(rendered(mine, override_settings=once)["info"])["sd_model_name"] == "farm-demo"
    assert mine.get("/sdapi/v1/progress").json()["state"]["job_count"] == 1
    assert other.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0
    other.post("/sdapi/v1/interrupt").raise_for_status()
    other.post("/sdapi/v1/skip").raise_for_status()
    assert other.get(f"/agent-scheduler/v1/task/{task}").status_code == 404
    assert other.post("/internal/progress", json={"id_task": task}).json()["queued"] is False
    assert mine.get("/internal/pending-tasks").json() == {"size": 1, "tasks": [task]}
    mine.post("/sdapi/v1/interrupt").raise_for_status()
    assert mine.get(f"/agent-scheduler/v1/task/{task}").json()["data"]["status"] == "interrupted"


def test_a_key_that_may_only_look(callers: list[httpx.Client], db: Database) -> None:
    with db.transaction() as session:
        token = keys.create(session, NewKey(name="n", scopes=frozenset({Scope.READ})))[1].text
    with httpx.Client(base_url=callers[0].base_url, auth=("x", token), timeout=LIMIT_S) as reader:
        assert reader.get("/sdapi/v1/samplers").status_code == 200
        for path in ("txt2img", "options", "interrupt"):
            refused = reader.post(f"/sdapi/v1/{path}", json={})
            assert (refused.status_code, set(refused.json())) == (403, {"error", "detail", "body", "errors"})


def test_more_callers_wait_than_there_are_threads(callers: list[httpx.Client]) -> None:
    mine, body = callers[0], {**SMALL, "override_settings": {"sd_model_checkpoint": SHELF}}

    async def crowd() -> None:
        async with httpx.AsyncClient(base_url=mine.base_url, auth=mine.auth, timeout=150) as client:
            calls = [asyncio.create_task(client.post("/sdapi/v1/txt2img", json=body)) for _ in range(THREADS + 10)]
            while (await client.get("/internal/pending-tasks")).json()["size"] < len(calls):
                pass
            # Answered on a thread, though more wait than there are.
            assert (await client.get("/sdapi/v1/sd-models")).status_code == 200
            for _ in calls:
                await client.post("/sdapi/v1/interrupt")
            assert {answer.status_code for answer in await asyncio.gather(*calls)} == {200}

    asyncio.run(crowd())


def _until(farm: httpx.Client, is_seen: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Look at the progress until it shows something."""
    seen: dict[str, Any] = {}

    def look() -> bool:
        seen.update(farm.get("/sdapi/v1/progress").json())
        return is_seen(seen)

    assert until(look), seen
    return seen
