"""The one error a user is meant to read."""

import difflib
import reprlib
import shlex
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import PurePath
from typing import Any

_SHOWN = 120
_SAID = 300
"""Most characters quoted of a library's error."""
_LEAST = 3
"""Least letters of a name whose continuations are meant."""


class InputError(Exception):
    """Bad input: a file, flag, config, checkpoint or result that cannot be used.

    The message is one sentence that names what is wrong, where, and the fix. The command line
    prints it without a traceback and exits with code 2 (`--debug` shows the traceback).
    """


class AdvisedError(InputError):
    """Bad input whose fault and advice are also told apart, for a caller that advises otherwise.

    >>> str(AdvisedError("run.toml is empty", "write it again"))
    'run.toml is empty; write it again'
    """

    def __init__(self, fault: str, advice: str) -> None:
        super().__init__(fault, advice)
        self.fault, self.advice = fault, advice

    def __str__(self) -> str:
        """The whole sentence."""
        return f"{self.fault}; {self.advice}"


def import_extra(module: str, extra: str, what: str) -> Any:
    """Import a module that comes with an extra of this package.

    Raises:
        InputError: it cannot be imported; `what` is what the message names.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"{what} is not installed; `pip install 'tql-offline[{extra}]'`"
        ) from error


def shown(value: Any) -> str:
    """Quote a foreign value for an error message: short and on one line, whatever it is.

    >>> len(shown("a" * 1000))
    120
    """
    quoted = reprlib.Repr()
    quoted.maxstring = quoted.maxother = quoted.maxlong = _SHOWN
    quoted.maxlist = quoted.maxdict = quoted.maxtuple = 8
    try:
        text = quoted.repr(value)
    except ValueError:  # an int of more digits than Python prints
        return f"a {type(value).__name__} too long to print"
    return text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]}..."


def quoted(path: PurePath) -> str:
    """A path as a shell takes it, for a command that is suggested.

    >>> quoted(PurePath("runs/a b"))
    "'runs/a b'"
    """
    return shlex.quote(str(path))


def numbered(number: int, one: str, several: str) -> str:
    """A number of things, with the word for one or for several.

    >>> numbered(1, "row is", "rows are"), numbered(2000, "row is", "rows are")
    ('1 row is', '2,000 rows are')
    """
    return f"{number:,} {one if number == 1 else several}"


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """A question that names the nearest of some known names, with a prefix; empty if none is near.

    Where none is, those that begin with the name.

    >>> did_you_mean("FQLL", ["fql", "iql", "cql"]), did_you_mean("a", ["fql"])
    ('did you mean fql?', '')
    """
    by_lower, lower = {one.lower(): one for one in known}, name[:_SHOWN].lower()
    near = difflib.get_close_matches(lower, by_lower, n=3, cutoff=0.6)
    if not near and len(lower) >= _LEAST:
        near = [one for one in by_lower if one.startswith(lower)][:3]
    return f"did you mean {' or '.join(prefix + by_lower[one] for one in near)}?" if near else ""


def first_line(error: BaseException, most: int = 200) -> str:
    r"""The first line of a library's error, or its kind; it may repeat a foreign name at length.

    >>> first_line(ValueError("no room.\nmore")), first_line(KeyError())
    ('no room', 'KeyError')
    """
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return line if len(line) <= most else f"{line[:most]}..."


def one_line(error: BaseException) -> str:
    r"""A library's error as part of a sentence: all its lines in one, or its kind.

    >>> one_line(ValueError("no room\nfor more.")), one_line(KeyError())
    ('no room for more', 'KeyError')
    """
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= _SAID else f"{text[:_SAID]}..."


def listed(names: Sequence[str], most: int) -> str:
    """Name the first `most` of `names`, and say if there are more.

    >>> listed(["a", "b", "c"], 2)
    'a, b, …'
    """
    return ", ".join([*names[:most], *(["…"] if len(names) > most else [])])
