"""`farm render`: submit prompts, wait for their jobs, save the images.

Ctrl-C cancels every unfinished job of this run.
"""

import base64
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.client import ClientError, FarmClient, Front, JobBody, JobId
from api.cli.output import Failure, complain, note, say
from api.cli.pictures import Folder, SavedPicture, save_images
from api.cli.polling import Interrupted, interruptible, is_final, watch
from api.cli.progress_bars import Show, bars
from shared.vocabulary.params import MAX_SEED
from shared.vocabulary.samplers import Sampler, Schedule


def render(
    context: typer.Context,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="One job per prompt.")],
    num_images: Annotated[int, typer.Option("-n", help="Images per job.")] = 1,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=1000, help="Jobs per prompt.")] = 1,
    negative: Annotated[str, typer.Option(help="Negative prompt.")] = "",
    seed: Annotated[int | None, typer.Option(help="Seed of the first image; random by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="In pixels: 512x768, or 256 for a square.")] = None,
    guidance: Annotated[float | None, typer.Option(help="CFG scale.")] = None,
    sampler: Annotated[Sampler | None, typer.Option(help="Sampling method.")] = None,
    schedule: Annotated[Schedule | None, typer.Option(help="Schedule type (noise levels).")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Name from `farm checkpoints`.")] = None,
    vae: Annotated[str | None, typer.Option(help="VAE instead of the checkpoint's own.")] = None,
    lora: Annotated[list[str] | None, typer.Option(metavar="NAME[:WEIGHT]", help="LoRA; may be repeated.")] = None,
    clip_skip: Annotated[int | None, typer.Option(help="As in AUTOMATIC1111: 1 is CLIP's last layer.")] = None,
    init: Annotated[Path | None, typer.Option(metavar="PICTURE", help="Init image: makes it img2img.")] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="PICTURE", help="Inpainting mask: white is painted anew, black stays.")
    ] = None,
    strength: Annotated[float | None, typer.Option(help="Denoising strength of img2img, 0 to 1.")] = None,
    hires: Annotated[
        float | None, typer.Option(metavar="SCALE", help="Hires fix: upscale by this factor and render again.")
    ] = None,
    hires_checkpoint: Annotated[
        str | None, typer.Option(metavar="NAME", help="Checkpoint of the second render of --hires.")
    ] = None,
    upscale: Annotated[
        float | None, typer.Option(metavar="SCALE", help="Enlarge the finished images, with Lanczos.")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A folder, or a .png file for a single image.")
    ] = Path(),
) -> None:
    """Render images and save them."""
    shared = {
        "negative_prompt": checked_text(negative),
        "num_images": num_images,
        "steps": steps,
        "guidance_scale": _finite(guidance),
        "sampler": sampler,
        "schedule": schedule,
        "checkpoint": checkpoint,
        "vae": vae,
        "loras": [_lora(one) for one in lora] if lora else None,
        "clip_skip": clip_skip,
        "init_image": _encoded(init),
        "mask_image": _encoded(mask),
        "strength": _finite(strength),
        "hires": _hires(hires, hires_checkpoint),
        "upscale": _finite(upscale),
        **_sides(size),
    }
    given = {name: value for name, value in shared.items() if value is not None}
    bodies = [given | body for body in _bodies(prompts, jobs=jobs, seed=seed, num_images=num_images)]
    _run(context.obj, bodies, Folder.at(output, num_images=len(bodies) * num_images))


def _run(front: Front, bodies: Sequence[JobBody], folder: Folder) -> None:
    with front.connect() as client, interruptible() as interrupted:
        code = RenderRun(client, folder, interrupted, _print_saved).run(bodies)
    if code:
        raise typer.Exit(code)


class RenderRun:
    """One run: submits jobs, waits for them and saves their images. Knows which are unfinished and whether any failed."""

    def __init__(
        self, client: FarmClient, folder: Folder, interrupted: Interrupted, saved: Callable[[SavedPicture], None]
    ) -> None:
        self._client = client
        self._folder = folder
        self._interrupted = interrupted
        self._saved = saved
        self._unfinished: dict[JobId, None] = {}
        self._failed = False

    def run(self, bodies: Sequence[dict[str, Any]]) -> int:
        """Render all bodies and return the exit code."""
        try:
            with bars() as show:
                self._submit(bodies, show)
                watch(self._client, list(self._unfinished), seen=self._seen(show), interrupted=self._interrupted)
        except ClientError as error:
            if error.transient and self._unfinished:
                raise Failure(f"{error}; these jobs are still on the farm: {' '.join(self._unfinished)}") from error
            cancel_all(self._client, self._unfinished)
            raise
        cancel_all(self._client, self._unfinished)
        return 130 if self._interrupted.is_set() else int(self._failed)

    def _submit(self, bodies: Sequence[dict[str, Any]], show: Show) -> None:
        for body in bodies:
            if self._interrupted.is_set():
                return
            job = self._client.submit(body)
            self._unfinished[job["id"]] = None
            show(job)

    def _seen(self, show: Show) -> Callable[[JobBody], None]:
        def seen(job: JobBody) -> None:
            show(job)
            if is_final(job):
                self._finish(job)

        return seen

    def _finish(self, job: JobBody) -> None:
        if job["state"] == "succeeded":
            for picture in save_images(self._client, job, self._folder):
                self._saved(picture)
        else:
            self._failed = True
            complain(f"job {job['id']} {reason(job)}")
        self._unfinished.pop(job["id"], None)


def _print_saved(picture: SavedPicture) -> None:
    say(f"{picture.path} seed={picture.seed}")


def cancel_all(client: FarmClient, job_ids: Sequence[JobId] | dict[JobId, None]) -> None:
    """Cancel jobs; print errors and go on."""
    for job_id in job_ids:
        try:
            client.cancel(job_id)
            note(f"canceled {job_id}")
        except ClientError as error:
            if error.code != "job_already_final":
                complain(f"job {job_id} could not be canceled: {error}")


def reason(job: JobBody) -> str:
    """Return why a job has no images: its state and its error."""
    error = job.get("error") or {}
    return f"{job['state']}: {error['message']} [{error['code']}]" if error else str(job["state"])


def checked_text(text: str) -> str:
    """Return the text. Raises `Failure` for lone surrogates, as which bytes of another encoding arrive from the command line."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Failure("the prompt is not valid UTF-8; set the terminal to UTF-8") from None
    return text


def _bodies(prompts: Sequence[str], *, jobs: int, seed: int | None, num_images: int) -> Iterator[dict[str, Any]]:
    for prompt in prompts:
        for number in range(jobs):
            body: dict[str, Any] = {"prompt": checked_text(prompt)}
            if seed is not None:
                # Jobs of one prompt go on where the one before stopped; a seed out of range is the API's to refuse.
                body["seed"] = (seed + number * num_images) % (MAX_SEED + 1) if 0 <= seed <= MAX_SEED else seed
            yield body


def _sides(size: str | None) -> dict[str, int]:
    if size is None:
        return {}
    match = re.fullmatch(r"(\d{1,5})(?:[x×](\d{1,5}))?", size, re.ASCII | re.IGNORECASE)
    if match is None:
        raise typer.BadParameter(f"--size {size!r} is not a size; write 512x768, or 256 for a square")
    return {"width": int(match[1]), "height": int(match[2] or match[1])}


def _hires(scale: float | None, checkpoint: str | None) -> dict[str, Any] | None:
    if not scale:
        if checkpoint:
            raise typer.BadParameter("--hires-checkpoint needs --hires")
        return None
    return {"scale": _finite(scale), "checkpoint": checkpoint} if checkpoint else {"scale": _finite(scale)}


def _lora(text: str) -> dict[str, Any]:
    name, _, weight = text.partition(":")
    try:
        return {"name": name, "weight": _finite(float(weight))} if weight else {"name": name}
    except ValueError:
        raise typer.BadParameter(f"--lora {text!r}: write NAME or NAME:WEIGHT, the weight a number") from None


def _encoded(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise Failure(f"{path}: cannot be read ({error.strerror})") from None


def _finite(number: float | None) -> float | None:
    if number is not None and not math.isfinite(number):
        raise typer.BadParameter(f"{number} is not a finite number")
    return number
