"""`tql-offline download`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from tql_offline.cli import app
from tql_offline.cli.tables import download_bars, print_table, say
from tql_offline.errors import InputError

if TYPE_CHECKING:
    from tql_offline.datasets.availability import Availability
    from tql_offline.datasets.catalogue import Entry
    from tql_offline.datasets.download import Downloaded


@app.command()
def download(
    names: Annotated[
        list[str] | None, typer.Argument(help="Dataset names; OGBench: with or without a task.")
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="All datasets of a bundle (ogbench-paper-25) or a suite (ogbench)."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Ask the mirrors what they have; fetch nothing.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Target. Default: the suite's own, e.g. ~/.ogbench/data.")
    ] = None,
    mirror: Annotated[
        list[str] | None,
        typer.Option(help="Address or folder to fetch from, instead of the known mirrors."),
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, max=16, help="Files to download at once.")] = 3,
    retries: Annotated[
        int, typer.Option(min=0, help="Retries per mirror, after 1, 2, 4, ... seconds.")
    ] = 3,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that fails its check.")] = (
        False
    ),
    allow_broken: Annotated[
        bool, typer.Option("--allow-broken", help="Fetch datasets known to be broken.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use only files and mirrors on this machine.")
    ] = False,
) -> None:
    """Download datasets; a stopped download resumes where it left off."""
    from tql_offline.datasets.mirrors import local_only

    wanted = _wanted(names or [], suite or [])
    if offline or local_only():
        say("offline: only files and mirrors of this machine are used")
    asked: dict[str, Any] = {"folder": folder, "mirrors": mirror, "offline": offline}
    if check:
        _check([entry for entry in wanted if entry.files], asked)
        return
    how = {"force": force, "offline": offline}
    for entry in wanted:
        if entry.suite == "minari":
            from tql_offline.datasets.minari_remote import download_minari

            say(f"{download_minari(entry, **how)}: fetched by Minari, or already there")
    files = [entry.name for entry in wanted if entry.files]
    _fetch(
        files, **asked, workers=parallel, retries=retries, force=force, allow_broken=allow_broken
    )


def _wanted(names: Sequence[str], suites: Sequence[str]) -> "list[Entry]":
    from tql_offline.datasets.catalogue import find, select

    if not names and not suites:
        raise InputError(
            "nothing to download is named; name a dataset, or give --suite ogbench-paper-25"
        )
    entries = [entry for suite in suites for entry in select(suite)]
    return list(dict.fromkeys([*map(find, names), *entries]))


def _fetch(names: Sequence[str], **options: Any) -> None:
    from tql_offline.datasets.download import download as fetch

    here: list[Downloaded] = []
    try:
        with download_bars() as progress:
            fetch(names, progress=progress, arrived=here.append, **options)
    finally:
        # Also when others failed, or Ctrl-C came.
        for file in here:
            state = f"from {file.url}" if file.url else "already there"
            say(f"{file.path}: {file.bytes:,} bytes, sha256 {file.sha256}, {state}")


def _check(wanted: "Sequence[Entry]", asked: dict[str, Any]) -> None:
    from tql_offline.datasets.availability import check

    found = check(wanted, **asked)
    print_table("Files", ("file", "here", "mirror", "says"), _rows(found), whole=True)
    absent = [each.file.name for each in found if not each.can_be_had]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(found)} files are neither here nor at any mirror: "
            f"{', '.join(absent)}; name another mirror with --mirror"
        )
    say(f"all {len(found)} files are here or can be downloaded")


def _rows(found: "Iterable[Availability]") -> list[tuple[str, str, str, str]]:
    rows = []
    for each in found:
        answers = [(_host(answer.url), answer.detail) for answer in each.answers]
        for number, answer in enumerate(answers or [("none asked", "")]):
            first = (each.file.name, each.local) if number == 0 else ("", "")
            rows.append((*first, *answer))
    return rows


def _host(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else str(Path(parts.path).parent)
