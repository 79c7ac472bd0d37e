"""Code that settings name, a method's or an environment's, and whether it came with them.

Whoever wrote a run folder wrote the names in its settings, too. Modules are found on the Python
path alone, which is the user's; but where a stranger's folder lies in a folder of that path, as
the working directory is with `PYTHONPATH=.`, a name can lead back into it:

    work/               in the Python path
      my_methods.py     the user's: `my_methods:CautiousQ`, named by work/runs/RUN
      dl/               a stranger's
        payload.py      `dl.payload:X`, named by the run beside it
        RUN/

So code is refused that lies in the folder that names it, or in a package around that folder.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from types import CodeType
from typing import Any

from tql_offline.datasets.digests import file_sha256
from tql_offline.errors import InputError, shown


def refuse_brought(
    named: str, opened: Path, *, advice: str = "move one of the two out of the other"
) -> None:
    """Refuse to import code that may have come with what names it.

    Args:
        named: `module:name`; any other name is of nothing that would be imported.
        opened: the run folder, or the file of settings, that it is written in.
        advice: what to do if the code is trusted.

    Raises:
        InputError: the code lies in what is opened, or in a package around that.
    """
    if place := brought(named, opened):
        raise InputError(
            f"{opened} names code that may have come with it: {shown(named)} is in {place}, and "
            f"one of the two lies in the other; if you trust that code, {advice}"
        )


def brought(named: str, opened: Path) -> Path | None:
    """Where code lies that may have come with what names it; None if it did not.

    Modules imported before are the caller's. Packages above the module are imported, each once it
    has been looked at, because only they know where their modules are; the module itself is not.
    """
    _, _, module = named.rpartition(":")[0].rpartition(":")  # before it may stand `goals:`
    for name in accumulate(module.split(".") if module else (), "{}.{}".format):
        if name in sys.modules:
            continue
        for place in _places(name):
            if _is_within(place, opened) or _is_within(opened, place):
                return place
    return None


def _places(name: str) -> Iterator[Path]:
    """The file of a module and, if it is a package, its folders; its parent is imported."""
    spec = None
    with suppress(Exception):  # whoever imports it says why it cannot be
        spec = find_spec(name)
    if spec is None:
        return
    if spec.has_location and spec.origin:
        yield Path(spec.origin)
    yield from map(Path, spec.submodule_search_locations or ())


def _is_within(inner: Path, outer: Path) -> bool:
    """Whether a path is another one or lies in it, by the links in it or by where they lead."""
    for path in (Path(os.path.normpath(Path.cwd() / inner)), inner.resolve()):
        for above in (path, *path.parents):
            with suppress(OSError):  # one of them does not exist
                if above.samefile(outer):
                    return True
    return False


def code_of(module: str) -> dict[str, str]:
    """Name and SHA-256 of the file of an imported module; both empty if it has none.

    What the file imports is not told apart. Code that was typed into a session has no file; see
    `code_of_class`.
    """
    file = Path(getattr(sys.modules.get(module), "__file__", None) or "")
    return {"file": file.name, "sha256": file_sha256(file) if file.is_file() else ""}


def code_of_class(cls: type) -> dict[str, str]:
    """`code_of` its module or, of a class typed into a session, the SHA-256 of its own bytecode."""
    code = code_of(cls.__module__)
    return code if code["sha256"] else {**code, "sha256": _typed_sha256(cls)}


def _typed_sha256(cls: type) -> str:
    """Of functions and plain values of a class and of those of its module that it derives from."""
    digest = hashlib.sha256()
    for one in cls.__mro__:
        if one.__module__ == cls.__module__:
            for name, value in sorted(vars(one).items()):
                digest.update(f"{name} {_told(value)}\n".encode())
    return digest.hexdigest()


def _told(value: Any) -> str:
    """A function's operations, or a plain value, without names of files and places in memory."""
    value = getattr(value, "__func__", getattr(value, "fget", value))
    code = getattr(value, "__code__", value)
    if isinstance(code, CodeType):
        parts = [code.co_code.hex(), *code.co_names, *code.co_varnames, *map(_told, code.co_consts)]
        return " ".join([*parts, _told(getattr(value, "__defaults__", None))])
    if isinstance(value, frozenset):  # in an order of its own in each process
        return " ".join(sorted(map(_told, value)))
    if isinstance(value, tuple):
        return " ".join(map(_told, value))
    return repr(value) if isinstance(value, bool | int | float | complex | str | bytes) else ""
