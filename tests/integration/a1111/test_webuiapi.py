"""The PyPI package `webuiapi` against a running farm: every method that the farm serves, blocking and asynchronous."""

import asyncio
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import webuiapi
from PIL import Image, ImageDraw
from redis import Redis

from shared.settings import Settings
from tests.support.workshop import serving, working

SMALL: dict[str, Any] = {
    "prompt": "a red circle on a blue background",
    "steps": 2,
    "width": 64,
    "height": 64,
    "seed": 7,
}


@pytest.fixture(scope="module")
def address(engines: Settings) -> Iterator[str]:
    with working(engines), serving(engines) as address:
        yield address


@pytest.fixture
def api(address: str, announced: str, redis: Redis) -> Iterator[webuiapi.WebUIApi]:
    assert announced
    assert redis.ping()
    parts = urlsplit(address)
    client = webuiapi.WebUIApi(host=parts.hostname, port=parts.port, username="admin", password="any")
    yield client
    client.session.close()


def test_txt2img_with_all_its_defaults(api: webuiapi.WebUIApi) -> None:
    assert not api.has_controlnet
    assert not api.has_adetailer
    result = api.txt2img(**SMALL)
    assert result.image.size == (64, 64)
    assert (result.info["seed"], result.info["sampler_name"]) == (7, "Euler a")
    assert result.image.info["parameters"] == result.info["infotexts"][0]
    assert result.parameters["prompt"] == SMALL["prompt"]


def test_a_batch_and_iterations(api: webuiapi.WebUIApi) -> None:
    result = api.txt2img(**SMALL, batch_size=2, n_iter=2, sampler_name="DPM++ 2M Karras")
    assert len(result.images) == 4
    assert result.info["all_seeds"] == [7, 8, 9, 10]


def test_hires_fix(api: webuiapi.WebUIApi) -> None:
    upscaler = webuiapi.HiResUpscaler.Latent
    result = api.txt2img(**SMALL, enable_hr=True, hr_scale=2, hr_upscaler=upscaler, denoising_strength=0.7)
    assert result.image.size == (128, 128)
    assert (result.info["width"], result.info["denoising_strength"]) == (64, 0.7)


def test_img2img_and_inpainting(api: webuiapi.WebUIApi) -> None:
    start = Image.new("RGB", (64, 64), "blue")
    again = api.img2img(images=[start], **SMALL, denoising_strength=0.5)
    assert again.image.size == (64, 64)
    mask = Image.new("RGB", (64, 64), "black")
    ImageDraw.Draw(mask).rectangle((16, 16, 48, 48), fill="white")
    painted = api.img2img(
        images=[start], mask_image=mask, **SMALL, inpainting_fill=1, inpaint_full_res=False, mask_blur=0
    )
    assert painted.image.getpixel((2, 2)) == (0, 0, 255)
    assert painted.image.getpixel((32, 32)) != (0, 0, 255)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:webuiapi")  # of aiohttp, as the package uses it
def test_what_is_asynchronous(api: webuiapi.WebUIApi) -> None:
    async def both() -> list[Any]:
        return list(await asyncio.gather(*(api.txt2img(**{**SMALL, "seed": seed}, use_async=True) for seed in (1, 2))))

    first, second = asyncio.run(both())
    assert (first.info["seed"], second.info["seed"]) == (1, 2)


def test_extras_and_png_info(api: webuiapi.WebUIApi) -> None:
    result = api.txt2img(**SMALL)
    large = api.extra_single_image(image=result.image, upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=1.5)
    assert large.image.size == (96, 96)
    several = api.extra_batch_images(images=[result.image] * 2, upscaler_1="Nearest", upscaling_resize=2)
    assert [picture.size for picture in several.images] == [(128, 128)] * 2
    assert api.png_info(result.image).info == result.info["infotexts"][0]
    with pytest.raises(RuntimeError, match="Model not found"):
        api.interrogate(result.image)


def test_lists_and_buttons(api: webuiapi.WebUIApi) -> None:
    assert api.util_get_model_names() == ["farm-demo.safetensors"]
    api.util_set_model("farm demo")
    assert api.util_get_current_model() == "farm-demo.safetensors"
    assert "DPM++ 2M" in api.util_get_sampler_names()
    assert "karras" in api.util_get_scheduler_names()
    assert [one["name"] for one in api.get_upscalers()] == ["None", "Lanczos", "Nearest"]
    assert api.get_latent_upscale_modes()[0] == {"name": "Latent"}
    for empty in (api.get_sd_vae, api.get_loras, api.get_hypernetworks, api.get_face_restorers, api.get_prompt_styles):
        assert empty() == []
    assert api.get_realesrgan_models() == []
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.get_memory()["ram"]["total"] > 0
    assert api.get_cmd_flags()["api"] is True
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    api.util_wait_for_ready()
    assert api.get_progress()["current_image"] is None
    assert api.interrupt() == {}
    assert api.skip() is None
    assert api.refresh_checkpoints() is None
    assert api.set_options(api.get_options()) is None
