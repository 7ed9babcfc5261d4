"""A parameter of jobs on the command line and in the console: "How to add" in ARCHITECTURE.md."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import playwright
import pytest
import typer

from api.admission.resolution import StoredInputs, resolve
from api.admission.submissions import Submission
from api.cli import main
from api.cli.app import app
from api.v1 import catalog
from api.web import console
from shared.vocabulary import infotext, prompt_grammar
from shared.vocabulary.params import GenerationParams
from tests.support.factories import DEMO
from tests.support.parameters import Excuses, at, changes, fail_if_any, forgotten, jobs, leaves
from tests.support.servers import Handler, Server
from tests.unit.checklists.test_parameter import GlowingParams, GlowingSubmission, assert_glow
from tests.unit.checklists.test_parameter_texts import UNTOLD

PICTURE = "picture.png"
# What to write behind `farm render PROMPT` for each parameter.
OPTIONS = {
    "negative_prompt": "--negative blurry",
    "steps": "--steps 9",
    "guidance_scale": "--guidance 3",
    "width": "--size 128x256",
    "height": "--size 128x256",
    "seed": "--seed 5",
    "num_images": "-n 2",
    "sampler": "--sampler euler",
    "schedule": "--schedule karras",
    "checkpoint": "--checkpoint other",
    "vae": "--vae other",
    "clip_skip": "--clip-skip 2",
    "loras.name": "--lora detail:0.5",
    "loras.weight": "--lora detail:0.5",
    "init_image": f"--init {PICTURE}",
    "mask_image": f"--init {PICTURE} --mask {PICTURE}",
    "strength": f"--init {PICTURE} --strength 0.5",
    "hires.scale": "--hires 2",
    "hires.checkpoint": "--hires 2 --hires-checkpoint other",
    "upscale": "--upscale 2",
}
# Options that are no parameter of a job.
OF_THE_COMMAND = {"prompts", "jobs", "output"}
SECOND_PASS = tuple(f"hires.{name}" for name in ("guidance_scale", "sampler", "schedule", "prompt", "negative_prompt"))
KEPT_SMALL = "left to scripts: farm render stays a command to type"
NO_OPTION: Excuses = {
    "prompt": "the argument",
    "loras.text_encoder_weight": "its weight acts on both halves; a tag in the prompt can part them",
    "hires.width": "farm render enlarges by a scale",
    "hires.height": "farm render enlarges by a scale",
    **{path: KEPT_SMALL for path in leaves(Submission) if path.startswith(("variation.", "inpaint.", "webhook."))},
    **dict.fromkeys((*SECOND_PASS, "hires.upscaler", "hires.steps", "hires.strength"), KEPT_SMALL),
    **dict.fromkeys(("resize_mode", "priority", "expires_in", "timeout"), KEPT_SMALL),
}


def without_option(model: type[Submission]) -> list[str]:
    place = "farm render has no option for it; api/cli/render.py, and OPTIONS here"
    return forgotten(model, OPTIONS.__contains__, place, NO_OPTION)


def test_the_command_line_has_every_parameter() -> None:
    fail_if_any(without_option(Submission))


class Refusing(Handler):
    """Keeps what is submitted and refuses it."""

    def do_POST(self) -> None:
        self.server.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(422, b'{"status": 422, "code": "invalid_request", "detail": "no"}')


@pytest.fixture(scope="module")
def desk() -> Iterator[Any]:
    server = Server(Refusing)
    yield server
    server.stop()


@pytest.mark.parametrize("path", OPTIONS)
def test_an_option_is_submitted(path: str, desk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(PICTURE).write_bytes(b"picture")
    desk.body = {}
    assert main(["--url", desk.url, "render", "a cat", *OPTIONS[path].split()]) == 1
    assert at(desk.body, path) is not None


def test_every_option_is_tried() -> None:
    render = typer.main.get_command(app).commands["render"]  # type: ignore[attr-defined]
    tried = {word for line in OPTIONS.values() for word in line.split()}
    for option in render.params:
        assert option.name in OF_THE_COMMAND or tried & set(option.opts), f"OPTIONS has no line that uses {option.opts}"


NODE = Path(playwright.__file__).with_name("driver") / "node"
# The console's own scripts, asked what they make of a form with every field changed, of jobs, and of the text in their pictures.
PROGRAM = """
import { FIELDS, TEXTS, alone, fresh, fromParams, submission, unheld } from "./fields.js";
import { infotext } from "./png.js";
import { body } from "./recipes.js";

const other = ({ kind, start, step, high, options }) => {
  if (kind === "number") return start === null ? 5 : Math.min(high, start + step);
  return kind === "flag" ? !start : (options?.at(-1) ?? "other");
};
const form = { ...fresh(), hires: true, loras: [{ name: "detail", weight: 0.5 }] };
for (const name of TEXTS) form[name] = "other";
for (const [name, field] of Object.entries(FIELDS)) form[name] = other(field);

let given = "";
for await (const part of process.stdin) given += part;
const { jobs, texts, samplers } = JSON.parse(given);
console.log(JSON.stringify({
  bodies: [submission(form), submission(form, { init: "aGk=", mask: "aGk=" })],
  forms: jobs.map(fromParams),
  recipes: jobs.map((job) => body(job, "ID")),
  again: jobs.map((job) => submission(fromParams(job), { init: job.init_image, mask: job.mask_image })),
  unheld: jobs.map(unheld),
  alone: jobs.map((job) => alone(job, { index: 1, seed: 5 })),
  read: texts.map((text) => fromParams(infotext(text, samplers))),
}));
"""
FOR_SCRIPTS = "left to the API: a form of everything is a form that nobody reads"
IN_BOTH_HALVES = "in the form one weight acts on both halves"
LORAS_OF_THE_SECOND_PASS = dict.fromkeys(
    (path for path in leaves(GenerationParams) if path.startswith("hires.loras.")), "they follow from the job's own"
)
OF_THE_STORAGE = dict.fromkeys(("init_image", "mask_image"), "a picture, fetched from the job that had it")
NOT_IN_THE_FORM: Excuses = {
    "loras.text_encoder_weight": IN_BOTH_HALVES,
    "inpaint.mask_invert": "a button inverts the painted mask itself",
    **dict.fromkeys(("hires.width", "hires.height"), "the form enlarges by a scale"),
    **dict.fromkeys(
        (*SECOND_PASS, "expires_in", "timeout", "webhook.url", "webhook.events", "webhook.secret"), FOR_SCRIPTS
    ),
}
NOT_REUSED: Excuses = {
    "kind": "a form is img2img once it has a picture",
    "loras.text_encoder_weight": IN_BOTH_HALVES,
    "inpaint.mask_invert": "a button inverts the painted mask itself",
    "hires.height": "the form enlarges by a scale, that of the width",
    **dict.fromkeys(SECOND_PASS, FOR_SCRIPTS),
    **OF_THE_STORAGE,
    **LORAS_OF_THE_SECOND_PASS,
}
OF_THE_MASK = tuple(path for path in leaves(GenerationParams) if path.startswith("inpaint."))
NOT_IN_A_RECIPE: Excuses = {"kind": "a job is img2img once it has a picture"}
NOT_READ: Excuses = {
    **UNTOLD,
    "vae": "other tools name files that the farm may not have",
    **{path: why for path, why in NOT_REUSED.items() if path in SECOND_PASS},
    **dict.fromkeys(
        (*OF_THE_MASK, "resize_mode", "strength"), "says what to do with a picture, which the text does not carry"
    ),
}


Asked = Callable[[Sequence[GenerationParams]], dict[str, Any]]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """Ask the console's scripts what they make of jobs."""
    scripts = tmp_path_factory.mktemp("console") / "js"
    shutil.copytree(console.FOLDER / "js", scripts)
    limits = {**console.limits(), "search": {}, "body": {}}
    (scripts / "limits.js").write_text(f"export const limits = {json.dumps(limits)};")
    (scripts / "package.json").write_text('{"type": "module"}')
    samplers = json.loads(catalog.samplers().model_dump_json())["samplers"]

    def ask(jobs: Sequence[GenerationParams]) -> dict[str, Any]:
        texts = [infotext.encode(job, 0) for job in jobs]
        given = {"jobs": [job.model_dump(mode="json") for job in jobs], "texts": texts, "samplers": samplers}
        program = [str(NODE), "--input-type=module", "--eval", PROGRAM]
        done = subprocess.run(program, input=json.dumps(given), cwd=scripts, capture_output=True, text=True, check=True)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return ask


@pytest.fixture(scope="module")
def consoles(asked: Asked) -> Callable[[type[GenerationParams]], dict[str, Any]]:
    """Ask the console's scripts, for each parameter, about jobs that differ in it alone."""

    def compared(model: type[GenerationParams]) -> dict[str, Any]:
        pairs = [(path, job, other) for path in leaves(model) for job in jobs(model) for other in changes(job, path)]
        answer = asked([job for _, *pair in pairs for job in pair])
        told = {
            name: {
                path
                for (path, *_), one, other in zip(pairs, answer[name][::2], answer[name][1::2], strict=True)
                if one != other
            }
            for name in ("forms", "recipes", "read")
        }
        return {"bodies": answer["bodies"], **told}

    return compared


@pytest.fixture(scope="module")
def told(consoles: Callable[[type[GenerationParams]], dict[str, Any]]) -> dict[str, Any]:
    return consoles(GenerationParams)


def not_in_the_form(model: type[Submission], told: dict[str, Any]) -> list[str]:
    place = "the console's form does not send it; FIELDS and submission in api/web/static/js/fields.js"
    return forgotten(
        model, lambda path: any(at(body, path) is not None for body in told["bodies"]), place, NOT_IN_THE_FORM
    )


def not_reused(model: type[GenerationParams], told: dict[str, Any]) -> list[str]:
    place = "settings that are reused lose it; fromParams in api/web/static/js/fields.js"
    return forgotten(model, told["forms"].__contains__, place, NOT_REUSED)


def not_in_a_recipe(model: type[GenerationParams], told: dict[str, Any]) -> list[str]:
    place = "a job copied as curl or Python loses it; body in api/web/static/js/recipes.js"
    return forgotten(model, told["recipes"].__contains__, place, NOT_IN_A_RECIPE)


def not_read(model: type[GenerationParams], told: dict[str, Any]) -> list[str]:
    place = "the console does not read it from a PNG's text; infotext in api/web/static/js/png.js"
    return forgotten(model, told["read"].__contains__, place, NOT_READ)


def test_the_form_sends_every_parameter(told: dict[str, Any]) -> None:
    fail_if_any(not_in_the_form(Submission, told))


def test_reused_settings_are_those_of_the_job(told: dict[str, Any]) -> None:
    fail_if_any(not_reused(GenerationParams, told))


def test_a_copied_job_is_the_same_job(told: dict[str, Any]) -> None:
    fail_if_any(not_in_a_recipe(GenerationParams, told))


SAME = {"steps": 9, "seed": 5}
COPIED = [
    {**SAME, "prompt": "a <lora:detail:0.5>, b <lyco:glow:0.2:0.7>", "loras": [{"name": "detail", "weight": 0.25}]},
    {**SAME, "prompt": "a<foo:bar> <lora: detail :1> >", "negative_prompt": "<lora:detail:1>", "num_images": 3},
    {**SAME, "prompt": "a", "hires": {"width": 1000, "height": 1000, "strength": 0.5, "upscaler": "lanczos"}},
    {**SAME, "prompt": "a <lora:detail:0.3>", "hires": {"prompt": "c"}},
    {**SAME, "prompt": "a <lora:detail:0.3>", "hires": {"prompt": "c <lora:glow:0.1:0.2> <lora:detail:te=0.1>"}},
    {**SAME, "prompt": "a", "init_image": "x", "mask_image": "y", "inpaint": {"mask_invert": True}, "strength": 0.4},
    {**SAME, "prompt": "a", "init_image": "x", "variation": {"seed": 2**32 - 1, "strength": 0.2}, "num_images": 2},
]
STORED = StoredInputs(init_image="inputs/picture", init_size=(512, 512), mask_image="inputs/mask")


def rendered(body: dict[str, Any]) -> GenerationParams:
    """Resolve a submission, but for what its tags leave of its prompts: they are taken out once they are LoRAs."""
    wanted = Submission.model_validate(body)
    stored = {name: getattr(STORED, name) for name in ("init_image", "mask_image") if getattr(wanted, name)}
    size = STORED.init_size if stored else None
    params = resolve(wanted, checkpoint=wanted.checkpoint or DEMO, inputs=StoredInputs(init_size=size, **stored))
    found = params.model_dump()
    for part in filter(None, (found, found["hires"])):
        part["prompt"] = prompt_grammar.split_loras(part["prompt"])[0].rstrip()
        # What two weights sum up to, without the last bits of the sum.
        rounded = [
            {name: round(it, 9) if name != "name" else it for name, it in lora.items()} for lora in part["loras"]
        ]
        part["loras"] = [lora for lora in rounded if lora["weight"] or lora["text_encoder_weight"]]
    return type(params).model_validate(found)


def test_a_copied_job_renders_the_same(asked: Asked) -> None:
    originals = [rendered(body) for body in COPIED]
    kept = [resolve_again(body, params) for body, params in zip(COPIED, originals, strict=True)]
    answer = asked(kept)
    for copy, original in zip(answer["recipes"], originals, strict=True):
        assert rendered(copy) == original


def test_a_form_renders_the_same_or_says_what_it_cannot_hold(asked: Asked) -> None:
    originals = [rendered(body) for body in COPIED]
    answer = asked([resolve_again(body, params) for body, params in zip(COPIED, originals, strict=True)])
    assert [names for names in answer["unheld"] if names] == [["loras"], ["hires_prompt"], ["hires_prompt"]]
    for body, original, names in zip(answer["again"], originals, answer["unheld"], strict=True):
        is_inverted = bool(original.inpaint and original.inpaint.mask_invert)  # the painted mask is
        assert (rendered(body) == original) == (not names and not is_inverted), (names, original)


def test_one_picture_of_a_job_is_that_picture(asked: Asked) -> None:
    originals = [rendered(body) for body in COPIED]
    for one, original in zip(asked(originals)["alone"], originals, strict=True):
        single = GenerationParams.model_validate(one)
        assert single.variation_seeds == original.model_copy(update={"num_images": 2}).variation_seeds[1:]


def resolve_again(body: dict[str, Any], rendered: GenerationParams) -> GenerationParams:
    """The same job as it is stored: with its prompts as they were written."""
    hires = rendered.hires
    if hires:
        hires = hires.model_copy(update={"prompt": body["hires"].get("prompt", body["prompt"])})
    return rendered.model_copy(update={"prompt": body["prompt"], "hires": hires})


def test_the_console_reads_what_pictures_tell(told: dict[str, Any]) -> None:
    fail_if_any(not_read(GenerationParams, told))


def test_a_forgotten_parameter_is_named_by_each_check(
    told: dict[str, Any], consoles: Callable[[type[GenerationParams]], dict[str, Any]]
) -> None:
    assert_glow(without_option(GlowingSubmission), "farm render has no option for it")
    assert_glow(not_in_the_form(GlowingSubmission, told), "the console's form does not send it")
    glowing = consoles(GlowingParams)
    assert_glow(not_reused(GlowingParams, glowing), "settings that are reused lose it")
    assert_glow(not_read(GlowingParams, glowing), "the console does not read it")
    assert not [
        line for line in not_in_a_recipe(GlowingParams, glowing) if line.startswith("glow")
    ]  # recipes take along whatever there is
    assert_glow(not_in_a_recipe(GlowingParams, told), "a job copied")
