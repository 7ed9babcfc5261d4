"""Request bodies of txt2img and img2img. Names, defaults and the order of fields are A1111's, which echoes them."""

from typing import Any

from pydantic import Field

from api.a1111.field_types import Flag, Int, Lax, Mapping, Number, Plain, Text, TextList


class PictureRequest(Lax):
    """Fields that txt2img and img2img share."""

    prompt: Text = ""
    negative_prompt: Text = ""
    styles: TextList | None = None
    seed: Int = -1
    subseed: Int = -1
    subseed_strength: Number = 0
    seed_resize_from_h: Int = -1
    seed_resize_from_w: Int = -1
    sampler_name: Text | None = None
    scheduler: Text | None = None
    batch_size: Int = 1
    n_iter: Int = 1
    steps: Int = 50
    cfg_scale: Number = 7.0
    width: Int = 512
    height: Int = 512
    restore_faces: Flag | None = None
    tiling: Flag | None = None
    do_not_save_samples: Flag = False
    do_not_save_grid: Flag = False
    eta: Number | None = None
    denoising_strength: Number | None = None
    s_min_uncond: Number | None = None
    s_churn: Number | None = None
    s_tmax: Number | None = None
    s_tmin: Number | None = None
    s_noise: Number | None = None
    override_settings: Mapping | None = None
    override_settings_restore_afterwards: Flag = True
    refiner_checkpoint: Text | None = None
    refiner_switch_at: Number | None = None
    disable_extra_networks: Flag = False
    firstpass_image: Text | None = None
    comments: Plain = None

    def echo(self) -> dict[str, Any]:
        """Return the request as the answer echoes it."""
        return self.model_dump()


class Txt2Img(PictureRequest):
    """A txt2img request, with or without hires fix."""

    enable_hr: Flag = False
    firstphase_width: Int = 0
    firstphase_height: Int = 0
    hr_scale: Number = 2.0
    hr_upscaler: Text | None = None
    hr_second_pass_steps: Int = 0
    hr_resize_x: Int = 0
    hr_resize_y: Int = 0
    hr_checkpoint_name: Text | None = None
    hr_sampler_name: Text | None = None
    hr_scheduler: Text | None = None
    hr_prompt: Text = ""
    hr_negative_prompt: Text = ""
    force_task_id: Text | None = None
    sampler_index: Text = "Euler"
    script_name: Text | None = None
    script_args: Plain = Field(default_factory=list)
    send_images: Flag = True
    save_images: Flag = False
    alwayson_scripts: Mapping = Field(default_factory=dict)
    infotext: Text | None = None


class Img2Img(PictureRequest):
    """An img2img request, with or without a mask."""

    init_images: TextList | None = None
    resize_mode: Int = 0
    denoising_strength: Number = 0.75
    image_cfg_scale: Number | None = None
    mask: Text | None = None
    mask_blur_x: Int = 4
    mask_blur_y: Int = 4
    mask_blur: Int | None = None
    mask_round: Flag = True
    inpainting_fill: Int = 0
    inpaint_full_res: Flag = True
    inpaint_full_res_padding: Int = 0
    inpainting_mask_invert: Int = 0
    initial_noise_multiplier: Number | None = None
    latent_mask: Text | None = None
    force_task_id: Text | None = None
    sampler_index: Text = "Euler"
    include_init_images: Flag = False
    script_name: Text | None = None
    script_args: Plain = Field(default_factory=list)
    send_images: Flag = True
    save_images: Flag = False
    alwayson_scripts: Mapping = Field(default_factory=dict)
    infotext: Text | None = None

    def echo(self) -> dict[str, Any]:
        """Return the request as the answer echoes it: without pictures unless `include_init_images`."""
        whole = self.model_dump(exclude={"init_images", "mask"})
        pictures = {"init_images": self.init_images, "mask": self.mask}
        return whole | (pictures if self.include_init_images else dict.fromkeys(pictures))
