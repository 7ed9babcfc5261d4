"""What each of the known A1111 clients sends, in its own order and with its own oddities, and what it reads from the answers.

The shapes are those that the clients' sources show; prompts, sizes and steps are small ones.
"""

import base64
import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict
from redis import Redis

from shared.settings import Settings
from tests.support.workshop import serving, working

PROMPT = "a red circle on a blue background"
PAGE = "http://127.0.0.1:5001"  # where a client that is a page itself comes from
SMALL: dict[str, Any] = {"prompt": PROMPT, "steps": 1, "width": 64, "height": 64}
Json = Any


@pytest.fixture(scope="module")
def address(engines: Settings) -> Iterator[str]:
    with working(engines), serving(engines.model_copy(update={"cors_origins": PAGE})) as address:
        yield address


@pytest.fixture
def farm(address: str, announced: str, redis: Redis) -> Iterator[httpx.Client]:
    assert announced
    assert redis.ping()
    with httpx.Client(base_url=f"{address}/sdapi/v1", timeout=60) as client:
        yield client


def get(farm: httpx.Client, path: str) -> Json:
    answer = farm.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def post(farm: httpx.Client, path: str, body: Json, **more: Any) -> Json:
    answer = farm.post(path, json=body, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def size(text: str) -> tuple[int, int]:
    """Read bare base64, as clients without a care for data URIs do."""
    with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as picture:
        assert picture.format == "PNG"
        return picture.size


def drawn(mode: str, color: Any, *, hole: Any = None) -> str:
    picture = Image.new(mode, (64, 64), color)
    if hole is not None:
        ImageDraw.Draw(picture).rectangle((16, 16, 47, 47), fill=hole)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


INIT, MASK = drawn("RGB", "#ff0000"), drawn("L", 0, hole=255)


def test_open_webui(farm: httpx.Client) -> None:
    """It sets the model by posting all options back, and needs `info` to exist; without a key its header is empty."""
    headers = {"Authorization": ""}
    models = farm.get("sd-models", headers=headers).json()
    options = farm.get("options", headers=headers).json()
    assert options["sd_model_checkpoint"] in {model["title"] for model in models}
    assert all(model["model_name"] for model in models)
    options["sd_model_checkpoint"] = models[0]["title"]
    post(farm, "options", options, headers=headers)
    made = post(farm, "txt2img", {**SMALL, "batch_size": 2, "negative_prompt": ""}, headers=headers)
    assert [size(image) for image in made["images"]] == [(64, 64)] * 2
    assert made["info"]


def test_sillytavern(farm: httpx.Client) -> None:
    """It sends its own settings along with the request, and waits for an idle farm after it has set a model."""
    headers = {"Authorization": "Basic " + base64.b64encode(b"undefined").decode()}
    assert get(farm, "upscalers")[0]["name"] == "None"
    for path, word in (("latent-upscale-modes", "name"), ("samplers", "name"), ("schedulers", "name")):
        assert all(one[word] for one in get(farm, path))
    assert isinstance(get(farm, "sd-vae"), list)
    post(farm, "options", {"sd_model_checkpoint": get(farm, "sd-models")[0]["title"]}, headers=headers)
    progress = farm.get("progress", headers=headers).json()
    assert (progress["progress"], progress["state"]["job_count"]) == (0, 0)
    body = {
        "url": "http://localhost:7860",
        "auth": "",
        "prompt": PROMPT,
        "negative_prompt": "lowres",
        "sampler_name": "DPM++ 2M",
        "scheduler": "karras",
        "steps": 1,
        "cfg_scale": 7,
        "width": 64,
        "height": 64,
        "restore_faces": False,
        "enable_hr": True,
        "hr_upscaler": "Latent",
        "hr_scale": 2,
        "denoising_strength": 0.7,
        "hr_second_pass_steps": 1,
        "override_settings": {"CLIP_stop_at_last_layers": 1},
        "clip_skip": 1,
        "override_settings_restore_afterwards": True,
        "save_images": True,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
    }
    assert size(post(farm, "txt2img", body, headers=headers)["images"][0]) == (128, 128)
    post(farm, "interrupt", {}, headers=headers)


def test_librechat(farm: httpx.Client) -> None:
    """It cuts a data URI's head off by the first comma, and shows what `info` says."""
    body = {"prompt": PROMPT, "negative_prompt": "blur", "cfg_scale": 4.5, "steps": 1, "width": 64, "height": 64}
    made = post(farm, "txt2img", body)
    assert size(made["images"][0].split(",", 1)[0]) == (64, 64)
    info = json.loads(made["info"])
    assert (info["width"], info["height"]) == (64, 64)
    assert isinstance(info["seed"], int)
    assert info["infotexts"][0].startswith(PROMPT)


def test_dify(farm: httpx.Client) -> None:
    """It sends JSON without saying so, fields set to what they mean by nothing, and a script's arguments without a script."""
    models = get(farm, "sd-models")
    name = models[0]["model_name"]
    post(farm, "options", {"sd_model_checkpoint": name})
    common = {
        "sampler_index": "DPM++ SDE Karras",
        "denoising_strength": 0,
        "s_noise": 0,
        "s_churn": 0,
        "comments": {},
        "override_settings": {"sd_model_checkpoint": name},
        "override_settings_restore_afterwards": True,
        "enable_hr": False,
        "firstphase_width": 0,
        "hr_resize_x": 0,
        "styles": [],
        "seed_resize_from_h": -1,
        "disable_extra_networks": False,
        "script_args": [],
        "alwayson_scripts": {},
    }
    bare = json.dumps({**SMALL, **common}).encode()
    answer = farm.post("txt2img", content=bare)
    assert "content-type" not in answer.request.headers
    assert size(answer.json()["images"][0]) == (64, 64)
    picture = {"init_images": [INIT], "denoising_strength": 0.9, "script_args": ["outpainting mk2"]}
    answer = farm.post("img2img", content=json.dumps({**SMALL, **common, **picture}).encode())
    assert answer.status_code == 200, answer.text
    assert size(answer.json()["images"][0]) == (64, 64)


def test_aiya(farm: httpx.Client, address: str) -> None:
    """The Discord bot probes what it talks to, sends halves of steps, and reads the progress while it waits."""
    with httpx.Client(base_url=address, timeout=60) as root:
        assert root.head("/", follow_redirects=True).status_code == 200
        assert root.get("/config").headers["content-type"].startswith("application/")
        assert root.get("/config").json()
    assert farm.get("cmd-flags").status_code == 200
    for path in ("samplers", "prompt-styles", "face-restorers", "hypernetworks", "upscalers"):
        assert isinstance(get(farm, path), list)
    assert isinstance(get(farm, "embeddings")["loaded"], dict)
    assert all({"name", "alias", "path"} <= lora.keys() for lora in get(farm, "loras"))
    for model in get(farm, "sd-models"):
        assert {"title", "model_name", "hash", "filename"} <= model.keys()
    body = {
        "denoising_strength": None,
        "hr_second_pass_steps": 0.5,
        "sampler_index": "Euler a",
        "styles": ["None"],
        "override_settings": {"CLIP_stop_at_last_layers": 1, "face_restoration_model": "CodeFormer"},
        "seed": 3,
    }
    made = post(farm, "txt2img", {**SMALL, **body})
    progress = get(farm, "progress")
    assert {"progress", "eta_relative", "current_image", "state"} <= progress.keys()
    assert {"job", "sampling_step", "sampling_steps"} <= progress["state"].keys()
    read = post(farm, "png-info", {"image": made["images"][0]})
    assert read["info"] == json.loads(made["info"])["infotexts"][0]
    enlarge = {"resize_mode": 0, "upscaling_resize": 2, "upscaler_1": "Lanczos", "image": made["images"][0]}
    assert size(post(farm, "extra-single-image", enlarge)["image"]) == (128, 128)
    assert farm.post("interrogate", json={"image": made["images"][0], "model": "clip"}).status_code == 404


class Strict(BaseModel):
    """What a deserializer without any leniency takes."""

    model_config = ConfigDict(strict=True)


class Info(Strict):
    """As the Rust bot declares `info`."""

    prompt: str
    all_prompts: list[str]
    negative_prompt: str
    all_negative_prompts: list[str]
    seed: int
    all_seeds: list[int]
    subseed: int
    all_subseeds: list[int]
    subseed_strength: float
    width: int
    height: int
    sampler_name: str
    cfg_scale: float
    steps: int
    batch_size: int
    restore_faces: bool
    face_restoration_model: str | None
    sd_model_hash: str | None
    seed_resize_from_w: int
    seed_resize_from_h: int
    denoising_strength: float | None
    extra_generation_params: dict[str, Any]
    index_of_first_image: int
    infotexts: list[str]
    styles: list[str]
    job_timestamp: str
    clip_skip: int
    is_using_inpainting_conditioning: bool


class Parameters(Strict):
    """As the Rust bot declares the echo, which may lack nothing that it asks for."""

    prompt: str
    negative_prompt: str | None
    styles: list[str] | None
    seed: int
    steps: int
    cfg_scale: float
    width: int
    height: int
    batch_size: int
    n_iter: int
    sampler_index: str | None
    send_images: bool
    save_images: bool
    override_settings: dict[str, Any] | None
    alwayson_scripts: dict[str, Any] | None


class Made(Strict):
    """A whole answer."""

    images: list[str]
    parameters: Parameters
    info: str


@pytest.mark.parametrize("kind", ["txt2img", "img2img"])
def test_the_strict_types_of_a_rust_telegram_bot(farm: httpx.Client, kind: str) -> None:
    body = {**SMALL, "seed": -1, "cfg_scale": 7.0, "batch_size": 2, "n_iter": 1, "sampler_index": "Euler a"}
    if kind == "img2img":
        body |= {"init_images": [INIT], "denoising_strength": 0.75}
    made = Made.model_validate_json(farm.post(kind, json=body).content)
    info = Info.model_validate_json(made.info)
    assert len(made.images) == len(info.all_seeds) == len(info.all_subseeds) == 2


def test_a_go_bot(farm: httpx.Client) -> None:
    body = {**SMALL, "n_iter": 2, "batch_size": 1, "seed": 5, "subseed": 9, "subseed_strength": 0.2}
    made = post(farm, "txt2img", {**body, "hr_resize_x": 0, "hr_resize_y": 0, "sampler_name": "Euler a"})
    info = json.loads(made["info"])
    assert (info["seed"], info["all_seeds"], info["all_subseeds"]) == (5, [5, 5], [9, 10])


def test_sdai(farm: httpx.Client, address: str) -> None:
    """The Android app writes seeds as text, and names samplers in the older field."""
    assert httpx.get(address, follow_redirects=True, timeout=60).status_code == 200
    for path in ("loras", "hypernetworks", "sd-models", "samplers", "sd-modules", "extensions"):
        assert isinstance(get(farm, path), list)
    assert isinstance(get(farm, "scripts")["txt2img"], list)
    assert isinstance(get(farm, "script-info"), list)
    assert get(farm, "embeddings")["loaded"] is not None
    body = {
        "seed": "12",
        "subseed": "",
        "subseed_strength": 0.0,
        "sampler_index": "DPM++ 2M",
        "scheduler": "automatic",
        "hr_cfg": 7.0,
        "enable_hr": False,
        "override_settings": {"sd_model_checkpoint": ""},
        "restore_faces": False,
    }
    made = post(farm, "txt2img", {**SMALL, **body})
    info = json.loads(made["info"])
    assert (info["seed"], info["sampler_name"]) == (12, "DPM++ 2M")
    picture = {"init_images": [INIT], "mask": MASK, "mask_blur": 0, "inpainting_fill": 1, "inpaint_full_res": False}
    assert size(post(farm, "img2img", {**SMALL, **body, **picture})["images"][0]) == (64, 64)


def test_swarmui(farm: httpx.Client) -> None:
    """It names models without the hash in their title, and takes the answer to a change of options as text."""
    title = get(farm, "sd-models")[0]["title"].split(" [")[0]
    assert get(farm, "options")["sd_model_checkpoint"]
    assert farm.post("options", json={"sd_model_checkpoint": title}).text == "null"
    body = {"sampler_name": "Euler", "seed": 1, "subseed": 2, "subseed_strength": 0.1, "batch_size": 2}
    assert len(post(farm, "txt2img", {**SMALL, **body})["images"]) == 2


def test_sd_webui_distributed(farm: httpx.Client) -> None:
    """It looks at a worker's memory, sends whole processing objects, falls back to Euler a, and asks for many at once."""
    junk = {"auth": ("None", "None")}
    assert isinstance(get(farm, "memory")["cuda"], dict)
    post(farm, "refresh-checkpoints", None, **junk)
    post(farm, "refresh-loras", None, **junk)
    refused = farm.post("txt2img", json={**SMALL, "sampler_name": "No Such"})
    assert "Sampler not found" in refused.json()["detail"]
    body = {
        "sampler_name": "Euler a",
        "s_tmax": 1e308,
        "sd_model": None,
        "outpath_samples": "outputs",
        "is_api": True,
        "script_args_value": [],
        "all_prompts": None,
        "sd_model_checkpoint": "x",
        "cached_uc": [None, None],
    }
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda seed: post(farm, "txt2img", {**SMALL, **body, "seed": seed}, **junk), range(4)))
    assert [json.loads(one["info"])["seed"] for one in made] == [0, 1, 2, 3]
    post(farm, "interrupt", None, **junk)


def test_auto_photoshop(farm: httpx.Client) -> None:
    """It sends what its own panels know, and reads each image's text by commas and colons."""
    body = {
        "init_images": [INIT],
        "mask": MASK,
        "inpaint_full_res": True,
        "inpaint_full_res_padding": 16,
        "inpainting_fill": 1,
        "inpainting_mask_invert": False,
        "mask_blur": 2,
        "image_cfg_scale": 1.5,
        "seed": 4,
        "denoising_strength": 0.7,
        "selection_info": {"left": 0},
        "expanded_mask": MASK,
        "uniqueDocumentId": "u",
        "use_sharp_mask": False,
        "sampler_index": "Euler a",
        "batch_size": 2,
        "hr_scale": 2.0,
        "enable_hr": False,
    }
    made = post(farm, "img2img", {**SMALL, **body})
    assert farm.get("progress?skip_current_image=false").status_code == 200
    for number, image in enumerate(made["images"]):
        text = post(farm, "png-info", {"image": f"data:image/png;base64,{image}"})["info"]
        last = text.splitlines()[-1]
        read = dict(part.split(":", 1) for part in last.replace(", ", ",").split(",") if ":" in part)
        assert (read["Steps"].strip(), read["Seed"].strip(), read["Size"].strip()) == ("1", str(4 + number), "64x64")


def test_gimp(farm: httpx.Client) -> None:
    """The plug-in ends its addresses with a question mark and writes flags as numbers."""
    body = {
        "init_images": [INIT],
        "mask": MASK,
        "inpaint_full_res": 1,
        "inpainting_mask_invert": 1,
        "sampler_index": "",
    }
    assert size(post(farm, "img2img?", {**SMALL, **body, "inpaint_full_res_padding": 10})["images"][0]) == (64, 64)


@pytest.fixture
def browser(farm: httpx.Client) -> httpx.Client:
    """A page of another origin: it asks first, and may read only what it is let."""
    farm.headers["Origin"] = PAGE
    return farm


def allowed(farm: httpx.Client, method: str, path: str) -> None:
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": "content-type"}
    answer = farm.options(path, headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert re.search(method, answer.headers["access-control-allow-methods"])
    assert "content-type" in answer.headers["access-control-allow-headers"].lower()


def test_openoutpaint(browser: httpx.Client) -> None:
    """It puts slashes behind addresses, and parses `info` for the seeds."""
    for path in ("options/", "progress", "upscalers", "sd-models", "loras", "samplers", "schedulers", "prompt-styles"):
        answer = browser.get(path)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    for path in ("txt2img", "img2img", "options/", "extra-single-image/"):
        allowed(browser, "POST", path)
    body = {"init_images": [INIT], "mask": MASK, "inpainting_fill": 2, "inpaint_full_res": False, "mask_blur": 0}
    made = post(browser, "img2img", {**SMALL, **body, "seed": -1, "n_iter": 2})
    assert len(json.loads(made["info"])["all_seeds"]) == len(made["images"]) == 2
    assert size(
        post(browser, "extra-single-image/", {"image": INIT, "upscaling_resize": 2, "upscaler_1": "Lanczos"})["image"]
    ) == (128, 128)


def test_koboldai_lite(browser: httpx.Client) -> None:
    """It writes every number as a float, and whatever it can set as an override."""
    for path in ("sd-models", "options"):
        assert browser.get(path).headers["access-control-allow-origin"] == PAGE
    allowed(browser, "POST", "txt2img")
    body = {
        "steps": 1.0,
        "width": 64.0,
        "height": 64.0,
        "cfg_scale": 5.0,
        "seed": 7.0,
        "clip_skip": 1,
        "n_iter": 1.0,
        "sampler_name": "Euler a",
        "scheduler": "default",
        "batch_size": 1.0,
        "denoising_strength": 0.6,
        "override_settings": {
            "sd_model_checkpoint": get(browser, "options")["sd_model_checkpoint"],
            "eta_noise_seed_delta": 0.0,
            "CLIP_stop_at_last_layers": 1.0,
            "ddim_discretize": "uniform",
            "img2img_fix_steps": False,
            "s_churn": 0.0,
            "sd_hypernetwork": "None",
            "inpainting_mask_weight": 1.0,
            "ddim_eta": 0.0,
        },
    }
    made = post(browser, "txt2img", {**SMALL, **body})
    assert size(made["images"][0]) == (64, 64)
    assert json.loads(made["info"])["seed"] == 7
    refused = browser.post("interrogate", json={"image": INIT, "model": "clip"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (404, PAGE)


def test_text_generation_webui(farm: httpx.Client) -> None:
    """It unloads and reloads around each picture, and sends the hires fix's fields as text while it is off."""
    for path in ("unload-checkpoint", "reload-checkpoint"):
        post(farm, path, "")
    body = {"hr_scale": "1.0", "hr_upscaler": "ESRGAN_4x", "enable_hr": False, "sampler_name": "DPM++ 2M", "seed": -1}
    assert size(post(farm, "txt2img", {**SMALL, **body})["images"][0].split(",", 1)[0]) == (64, 64)


def test_ai_render(farm: httpx.Client) -> None:
    """The Blender add-on compares the details of refusals."""
    refused = farm.post("img2img", json=SMALL)
    assert (refused.status_code, refused.json()["detail"]) == (404, "Init image not found")
    body = {"init_images": [f"data:image/png;base64,{INIT}"], "denoising_strength": 0.5, "sampler_index": "DDIM"}
    assert size(post(farm, "img2img", {**SMALL, **body, "unknown_to_all": 1})["images"][0]) == (64, 64)
