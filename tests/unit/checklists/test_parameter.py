"""A parameter of jobs has its place from the submission to the engine: "How to add" in ARCHITECTURE.md.

Each place is asked by what it does: where a parameter changes, what the place makes of the job must change as well, or the
reason why not stands here.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any
from uuid import UUID

import numpy as np
from PIL import Image

from api.admission.submissions import Submission
from shared.files.pictures import PixelBudget
from shared.infra.db import Database
from shared.jobs.lifecycle import Claim
from shared.jobs.wire import EXAMPLE
from shared.settings import Settings
from shared.vocabulary.params import GenerationParams
from tests.support.parameters import (
    Excuses,
    changes,
    differs,
    fail_if_any,
    forgotten,
    jobs,
    leaves,
    required,
    resolved,
    submissions,
)
from tests.support.parts import ROOT
from worker.engine.request import ImageSpec, Pass
from worker.slots.engine_specs import EngineSpecs
from worker.slots.snapshots import Snapshots

LOOKED_UP = "looked up by admission, which hands it in"
OF_THE_ROW = "decides when the job runs or who hears of it, not what it renders"
UNRESOLVED: Excuses = {
    "init_image": "stored first, and its key handed in",
    **dict.fromkeys(("checkpoint", "hires.checkpoint", "vae"), LOOKED_UP),
    **dict.fromkeys(("priority", "expires_in", "timeout"), OF_THE_ROW),
    **dict.fromkeys(("webhook.url", "webhook.events", "webhook.secret"), OF_THE_ROW),
}
NOT_IN_THE_ENGINE: Excuses = {
    "kind": "says whether there is an init image, which the engine is given",
}
# What every stored job and every client has said since the first release. What comes later has a default.
ALWAYS_STORED = {
    *("checkpoint", "prompt", "negative_prompt", "steps", "guidance_scale", "width", "height", "seed", "num_images"),
    *("sampler", "schedule", "variation.seed", "variation.strength"),
    *("loras.name", "loras.weight", "loras.text_encoder_weight"),
    *("inpaint.mask_blur", "inpaint.mask_fill", "inpaint.mask_invert", "inpaint.only_masked", "inpaint.padding"),
    *("hires.width", "hires.height", "hires.upscaler", "hires.steps", "hires.strength", "hires.guidance_scale"),
    *("hires.sampler", "hires.schedule", "hires.prompt", "hires.negative_prompt"),
    *("hires.loras.name", "hires.loras.weight", "hires.loras.text_encoder_weight"),
}
ALWAYS_SENT = {"prompt", "variation.strength", "loras.name", "webhook.url"}


class GlowingSubmission(Submission):
    """With a parameter that nobody has heard of."""

    glow: float = 0.0


class GlowingParams(GenerationParams):
    """The same, behind the edge."""

    glow: float = 0.0


class DemandingParams(GenerationParams):
    """With one that has no default."""

    glow: float


def assert_glow(lines: list[str], said: str) -> None:
    """What is said of the parameter that nobody has heard of."""
    assert [line for line in lines if line.startswith(f"glow: {said}")]


def unresolved(model: type[Submission]) -> list[str]:
    given = submissions(model)
    place = "changes nothing in GenerationParams; api/admission/resolution.py passes it on"
    return forgotten(model, lambda path: differs(given, path, resolved), place, UNRESOLVED)


def test_what_is_submitted_is_resolved() -> None:
    fail_if_any(unresolved(Submission))


def test_what_is_stored_or_sent_already_can_still_be_read() -> None:
    new = set(required(GenerationParams)) - ALWAYS_STORED
    assert not new, "stored jobs lack it: it needs the default that means what they meant (shared/vocabulary/params.py)"
    new = set(required(Submission)) - ALWAYS_SENT
    assert not new, "clients do not send it yet: it needs a default (api/admission/submissions.py)"


def undocumented(model: type[GenerationParams]) -> list[str]:
    example: Any = EXAMPLE["params"]
    shown = {**model.model_validate(example).model_dump(mode="json"), **dict.fromkeys(model.model_fields)}
    return [f"{name}: not in EXAMPLE of shared/jobs/wire.py" for name in shown if name not in example]


def test_the_documented_job_shows_every_parameter() -> None:
    fail_if_any(undocumented(GenerationParams))


PIXELS = np.random.default_rng(1).integers(0, 255, (64, 96, 3), dtype=np.uint8)


def fetch(key: str) -> bytes:
    """Another picture for each length of a key: noise, and as a mask a small white square."""
    pixels = np.roll(PIXELS, len(key), axis=0)
    if "mask" in key:
        pixels = np.zeros_like(PIXELS)
        pixels[20:28, len(key) : len(key) + 8] = 255
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def specs_of(job: GenerationParams) -> list[ImageSpec]:
    return EngineSpecs.of(job, fetch, PixelBudget(2**24)).specs()


def asked_of_the_engine(job: GenerationParams) -> list[Any]:
    """What the engine is asked for, and what is made of a picture that it returns."""
    made = EngineSpecs.of(job, fetch, PixelBudget(2**24))
    starts = [(one.start.pixels.tobytes(), _bytes(one.start.mask), one.start.fill) for one in made.specs() if one.start]
    finished = made.finished(np.resize(PIXELS, (job.height, job.width, 3)))
    return [[replace(one, start=None) for one in made.specs()], starts, finished.shape, finished.tobytes()]


def _bytes(mask: Any) -> bytes:
    return b"" if mask is None else mask.tobytes()


def unrendered(model: type[GenerationParams]) -> list[str]:
    given = jobs(model)
    place = "changes nothing that the engine is asked for; worker/slots/engine_specs.py passes it on"
    return forgotten(model, lambda path: differs(given, path, asked_of_the_engine), place, NOT_IN_THE_ENGINE)


def test_what_is_resolved_reaches_the_engine() -> None:
    fail_if_any(unrendered(GenerationParams))


def test_the_engine_reads_all_that_it_is_asked_for() -> None:
    files = [path for path in (ROOT / "worker/engine").glob("*.py") if path.name != "request.py"]
    code = "\n".join(path.read_text() for path in files)
    for asked in (ImageSpec, Pass):
        for one in fields(asked):
            assert re.search(rf"\.{one.name}\b", code), f"worker/engine never reads {one.name} of {asked.__name__}"


def left_behind(model: type[Submission], specs: Any = specs_of) -> Iterator[str]:
    """Yield the parameters that act on the first pass of hires fix and not on the second, which has none of its own."""
    for given in submissions(model):
        if given.hires is None:
            continue
        own = {f"hires.{name}" for name, value in given.hires if value is not None}
        for path in leaves(model):
            for other in changes(given, path) if f"hires.{path}" not in own else ():
                (first, second), (first_then, second_then) = (specs(resolved(one))[0].passes for one in (given, other))
                if first != first_then and second == second_then:
                    yield f"{path}: leaves the second pass as it is; _hires (resolution.py), _passes (engine_specs.py)"
                    break


def test_what_acts_on_the_first_pass_acts_on_the_second() -> None:
    fail_if_any(left_behind(Submission))


def unmarked(model: type[GenerationParams], mark: Any) -> list[str]:
    given = jobs(model)
    return forgotten(model, lambda path: differs(given, path, mark), "a snapshot of another would be gone on from", {})


def test_a_snapshot_of_other_parameters_is_another() -> None:
    settings = Settings()
    snapshots = Snapshots(Database(settings), settings)
    fail_if_any(unmarked(GenerationParams, lambda job: snapshots._mark(Claim(UUID(int=1), 1, job), "weights")))


def test_a_forgotten_parameter_is_named_by_each_check() -> None:
    assert_glow(unresolved(GlowingSubmission), "changes nothing in GenerationParams")
    assert "glow" in set(required(DemandingParams)) - ALWAYS_STORED
    assert_glow(undocumented(GlowingParams), "not in EXAMPLE of shared/jobs/wire.py")
    assert_glow(unrendered(GlowingParams), "changes nothing that the engine is asked for")
    assert_glow(unmarked(GlowingParams, lambda job: job.model_dump_json(exclude={"glow"})), "")


def test_a_second_pass_that_stays_as_it_was_is_noticed() -> None:
    def forgetful(job: GenerationParams) -> list[ImageSpec]:
        assert job.hires is not None
        return specs_of(job.model_copy(update={"hires": job.hires.model_copy(update={"guidance_scale": 7.0})}))

    assert "guidance_scale" in {line.split(":")[0] for line in left_behind(Submission, forgetful)}
