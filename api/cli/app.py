"""The command line: commands, global options, and the conversion of errors into one line.

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 130 stopped by Ctrl-C.
"""

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from api.cli import (
    checkpoints,
    delete,
    demo,
    doctor,
    drain,
    jobs,
    keys,
    migrate,
    render,
    retry,
    sweep,
    top,
    up,
    weights,
)
from api.cli.client import DEFAULT_URL, ClientError, Front
from api.cli.output import Failure, complain, forgive_encoding
from shared.errors import FarmError

app = typer.Typer(
    name="farm",
    help="A render farm for Stable Diffusion 1.5.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("up")(up.up)
app.command("demo")(demo.demo)
app.command("render")(render.render)
app.command("sweep")(sweep.sweep)
app.command("jobs")(jobs.list_jobs)
app.command("job")(jobs.show_job)
app.command("cancel")(jobs.cancel_jobs)
app.command("retry")(retry.retry)
app.command("delete")(delete.delete)
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(weights.group("lora"), name="loras")
app.add_typer(weights.group("embedding"), name="embeddings")
app.add_typer(weights.group("vae"), name="vaes")
app.add_typer(keys.app, name="keys")
app.command("migrate")(migrate.migrate)
app.command("top")(top.top)
app.command("drain")(drain.drain)
app.command("doctor")(doctor.doctor)


@app.callback(invoke_without_command=True)
def farm(
    context: typer.Context,
    url: Annotated[str, typer.Option(envvar="FARM_URL", help="URL of the farm's API.")] = DEFAULT_URL,
    api_key: Annotated[
        str | None, typer.Option(envvar="FARM_API_KEY", show_envvar=True, help="API key, sent as a bearer token.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,  # noqa: ARG001
) -> None:
    """Render images on a farm, or run one."""
    context.obj = Front(url=url, api_key=api_key)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Errors print one line, and a traceback under `--debug`."""
    forgive_encoding()
    command_line = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(command_line, prog_name="farm", standalone_mode=False)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - the outermost border: whatever went wrong, the user reads one line
        if "--debug" in command_line:
            traceback.print_exc()
        complain(_line(error))
        return getattr(error, "exit_code", 1)
    return code if isinstance(code, int) else 0


def _line(error: Exception) -> str:
    if isinstance(error, typer.TyperException):
        return f"{error.format_message()} (see farm --help)"
    if isinstance(error, (Failure, ClientError)):
        return str(error)
    if isinstance(error, FarmError):
        return "; ".join(text for name, text in error.log_fields.items() if name != "code")
    hint = "farm --debug COMMAND shows the traceback"
    return f"{type(error).__name__}: {error} ({hint})"
