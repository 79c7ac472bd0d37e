"""The command line: one file per command, each a few lines over the library."""

import sys
from typing import Annotated

import typer

from tql_offline.errors import InputError
from tql_offline.version import __version__

app = typer.Typer(
    name="tql-offline",
    help="Offline-RL benchmark toolkit: does a bigger critic help, and is the answer true?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
    _debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.")
    ] = False,
) -> None:
    # `main` looks for --debug itself: it concerns errors of parsing, too.
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error of the user's is one sentence and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(args=arguments, prog_name="tql-offline", standalone_mode=False)
    except (InputError, typer.TyperException) as error:
        if "--debug" in arguments:
            raise
        typer.echo(f"tql-offline: {_sentence(error)}", err=True)
        raise SystemExit(2) from None
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("tql-offline: stopped by Ctrl-C", err=True)
        raise SystemExit(130) from None
    raise SystemExit(code if isinstance(code, int) else 0)


def _sentence(error: Exception) -> str:
    """The error in one sentence; a parsing error gets the mend it lacks."""
    if isinstance(error, InputError):
        return str(error)
    message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
    text = " ".join(message.split()).rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "tql-offline"
    return f"{text[:1].lower()}{text[1:]}; see `{command} --help`"


from tql_offline.cli import (  # noqa: E402  (each registers its command on `app`)
    collect,
    datasets,
    demo,
    doctor,
    download,
    report,
    train,
)
from tql_offline.cli import eval as _eval  # noqa: E402

__all__ = ["app", "collect", "datasets", "demo", "doctor", "download", "main", "report", "train"]
del _eval
