"""The command line: one file per command, with its flags, its sentences and little else."""

import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from tql_offline.errors import InputError
from tql_offline.version import __version__

CTRL_C = 130
"""Exit code of a stopped command, as in shells."""


class _StoppedError(Exception):
    """Ctrl-C inside a command, with the notes that the command added."""


COMMANDS = (
    *("doctor", "demo", "datasets", "download", "collect"),
    *("train", "eval", "inspect", "report", "select", "sweep", "export", "bench"),
)
"""In the order in which a user meets them, for `--help`; `a-b` is in the module `a_b`."""


class _Group(TyperGroup):
    """Typer turns KeyboardInterrupt into an exit code; this keeps its notes."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=COMMANDS.index)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise _StoppedError("; ".join(getattr(stop, "__notes__", []))) from stop


app = typer.Typer(
    name="tql-offline",
    cls=_Group,
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
    # `main` looks for --debug itself, since it concerns parsing errors, too.
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's error gives one sentence and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(args=arguments, prog_name="tql-offline", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort, _StoppedError) as stop:
        _stop(str(stop))
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None or "--debug" in arguments:
            raise
        if sentence:
            told = "; ".join([sentence, *getattr(error, "__notes__", [])])
            typer.echo(f"tql-offline: {printable(told)}", err=True)
        raise SystemExit(2) from None
    if code == CTRL_C:
        _stop("")
    raise SystemExit(code if isinstance(code, int) else 0)


def _stop(note: str) -> NoReturn:
    typer.echo(f"tql-offline: stopped{note and f'; {note}'}", err=True)
    raise SystemExit(CTRL_C) from None


def printable(text: str) -> str:
    """Escape control characters, which may come from a file, so that no terminal sees them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _sentence(error: Exception) -> str | None:
    """The error in one sentence, empty if it was shown already; None if it is a bug of ours."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, typer.TyperException):
        return _parsing_sentence(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error) or type(error).__name__
        return f"{place}{reason}; check that the file is there, may be used, and has room to grow"
    if type(error).__name__ == "OutOfMemoryError":  # PyTorch's, a RuntimeError
        return (
            "the GPU has too little free memory for this; choose a smaller --size or --batch-size, "
            "or train fewer --seeds at once"
        )
    if isinstance(error, RuntimeError):
        return _environment_sentence(error)
    return None


def _parsing_sentence(error: typer.TyperException) -> str:
    """A parsing error with the fix it lacks; empty for a bare command, whose help was printed."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return ""
    text = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "tql-offline"
    return f"{text[:1].lower()}{text[1:]}; see `{command} --help`"


def _environment_sentence(error: RuntimeError) -> str | None:
    """The first line of an environment's own error, which its traceback follows."""
    # Imported here: otherwise every command would wait for it.
    from tql_offline.eval.workers import EnvironmentFailedError

    if not isinstance(error, EnvironmentFailedError):
        return None
    first, *rest = str(error).strip().splitlines()
    return f"{first}; add --debug to see where" if rest else first


def _register(commands: Iterable[str]) -> None:
    """Import the modules of commands, each of which registers its own on `app`."""
    for command in commands:
        import_module(f"tql_offline.cli.{command.replace('-', '_')}")


_register(COMMANDS)
