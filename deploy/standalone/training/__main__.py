"""Train, export and measure the demo checkpoint from the command line.

Steps, in order, with the time they take on two CPU cores with bf16:

  vae       the autoencoder, from nothing                          10 min
  denoiser  stage "first": text encoder and UNet from nothing      45 min, and 2 min of drawing
            stage "second": one attention head, guided loss        34 min, and 2 min of drawing
  export    one fp16 file in the original layout, and its configs  15 s
  evaluate  figures and a contact sheet                            1 min
  all       everything above

Each step leaves its result in the workspace (--work) for the next. --effort 0.01 tries a step out in seconds.
On a CPU, MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000 MALLOC_TOP_PAD_=268435456 keeps step times even.
"""

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from deploy.standalone.training import autoencoder, denoiser, evaluate, export
from deploy.standalone.training.stages import STAGES, Plan, parse_plan
from deploy.standalone.training.workspace import Workspace

PUBLISHED = Path(__file__).parents[1] / "checkpoints" / "farm-demo.safetensors"
LAST_STAGE = "second"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one step of the training, or all."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("deploy.standalone.training").setLevel(logging.INFO)
    _hush_libraries()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        options.run(options)
    except OSError as error:
        raise SystemExit(f"{error}\nHas the step before this one been run in this workspace?") from error


def _hush_libraries() -> None:
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.standalone.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    steps = parser.add_subparsers(required=True, metavar="STEP")
    working, measuring, exporting = _working(), _measuring(), _exporting()
    steps.add_parser("vae", parents=[working], help="train the autoencoder").set_defaults(run=_vae)
    _add_denoiser(steps.add_parser("denoiser", parents=[working], help="train the text encoder and UNet"))
    steps.add_parser("export", parents=[working, exporting], help="write the checkpoint").set_defaults(run=_export)
    _add_evaluate(steps.add_parser("evaluate", parents=[_machine(), measuring], help="measure a checkpoint"))
    everything = steps.add_parser("all", parents=[working, exporting, measuring], help="all of the above")
    everything.set_defaults(run=_all)
    return parser


def _machine() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--device", default="cpu", type=torch.device, help="cpu or cuda (default: cpu)")
    options.add_argument("--threads", default=0, type=int, help="CPU threads (default: torch's choice)")
    return options


def _working() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False, parents=[_machine()])
    options.add_argument("--work", default=Path("training"), type=Path, help="the workspace (default: training/)")
    options.add_argument(
        "--effort", default=1.0, type=_more_than_nothing, help="scale of all time budgets (default: 1)"
    )
    return options


def _exporting() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--out", type=Path, help="the file to write (default: farm-demo.safetensors in the workspace)")
    options.add_argument("--from-stage", default=LAST_STAGE, choices=STAGES, help="whose weights (default: second)")
    return options


def _measuring() -> argparse.ArgumentParser:
    usual = evaluate.Setting()
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--size", default=usual.side_px, type=int, help="side in pixels (default: %(default)s)")
    options.add_argument("--n", default=60, type=int, help="how many prompts (default: %(default)s)")
    options.add_argument("--batch", default=usual.batch, type=int, help="images at once (default: %(default)s)")
    options.add_argument("--steps", default=usual.steps, type=int, help="denoising steps (default: %(default)s)")
    options.add_argument("--sampler", default=usual.sampler, choices=evaluate.SAMPLERS, help="default: %(default)s")
    options.add_argument("--guidance", default=usual.guidance_scale, type=float, help="scale (default: %(default)s)")
    options.add_argument("--sheet", type=Path, help="where to write the contact sheet, a PNG")
    return options


def _add_denoiser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stage", choices=STAGES, help="only this stage (default: first, then second)")
    parser.add_argument("--plan", type=_plan, help="another plan for that stage; " + (parse_plan.__doc__ or ""))
    parser.set_defaults(run=_denoiser)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", nargs="?", default=PUBLISHED, type=Path, help="default: the demo checkpoint as published"
    )
    parser.set_defaults(run=_evaluate)


def _plan(text: str) -> Plan:
    try:
        return parse_plan(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not a plan: {text} ({error})") from error


def _more_than_nothing(text: str) -> float:
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError("must be more than 0")
    return float(text)


def _vae(options: argparse.Namespace) -> None:
    autoencoder.train(_space(options))


def _denoiser(options: argparse.Namespace) -> None:
    if options.plan and not options.stage:
        raise SystemExit("--plan needs --stage: which one is to follow it?")
    for stage in [STAGES[options.stage]] if options.stage else STAGES.values():
        denoiser.train(_space(options), replace(stage, plan=options.plan) if options.plan else stage)


def _export(options: argparse.Namespace) -> None:
    export.export(_space(options), options.from_stage, _target(options))


def _evaluate(options: argparse.Namespace) -> None:
    setting = evaluate.Setting(options.size, options.sampler, options.guidance, options.steps, options.batch)
    evaluate.evaluate(options.checkpoint, setting=setting, count=options.n, device=options.device, sheet=options.sheet)


def _all(options: argparse.Namespace) -> None:
    autoencoder.train(_space(options))
    for stage in STAGES.values():
        denoiser.train(_space(options), stage)
    _export(options)
    options.checkpoint = _target(options)
    _evaluate(options)


def _space(options: argparse.Namespace) -> Workspace:
    return Workspace(options.work, options.device, options.effort)


def _target(options: argparse.Namespace) -> Path:
    target: Path = options.out or options.work / PUBLISHED.name
    return target


if __name__ == "__main__":
    main()
