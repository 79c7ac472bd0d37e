"""Check of what could be downloaded: asks every mirror for every file, and fetches none."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from tql_offline.datasets.catalogue import Entry, PublishedFile
from tql_offline.datasets.mirrors import (
    address,
    is_local,
    local_only,
    local_path,
    session,
    templates,
)
from tql_offline.datasets.names import suite_folder
from tql_offline.datasets.verify import Unsound, sound
from tql_offline.errors import InputError

_ASKED_AT_ONCE = 8
_NO_HEAD = {405, 501}
"""Status codes of hosts that do not support HEAD."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One mirror's answer about one file.

    Attributes:
        url: the address that was asked.
        available: whether it offers the file, of the right length if that is known.
        detail: its answer in a few words.
    """

    url: str
    available: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class Availability:
    """Where a file is available.

    Attributes:
        file: the catalogue's record of it.
        path: where it is on this machine, or would be.
        local: `whole`, `missing`, `unfinished: ...` or what is wrong with it.
        answers: one per mirror, in the order of the mirrors.
    """

    file: PublishedFile
    path: Path
    local: str
    answers: tuple[Answer, ...]

    @property
    def is_here(self) -> bool:
        """Whether the file is on this machine and the published one."""
        return self.local == "whole"

    @property
    def can_be_had(self) -> bool:
        """Whether the file is on this machine or offered by some mirror."""
        return self.is_here or any(answer.available for answer in self.answers)


def check(
    entries: Iterable[Entry],
    *,
    folder: Path | None = None,
    mirrors: Sequence[str] | None = None,
    client: httpx.Client | None = None,
    offline: bool = False,
) -> list[Availability]:
    """Ask all mirrors for all files of some datasets, by HEAD, and check the files already here.

    Args:
        entries: the datasets.
        folder: where to look for files; None: where each suite's own package keeps them.
        mirrors: addresses to ask instead of the catalogue's.
        client: HTTP client whose timeouts and redirect limit apply; None: connect 10 s, read 30 s,
            5 redirects.
        offline: use only mirrors that are local folders, as with `$TQL_OFFLINE_LOCAL_ONLY`.

    Raises:
        InputError: a mirror is not an address, or the proxy cannot be used.
    """
    offline = offline or local_only()
    wanted = [
        (file, (folder or suite_folder(entry.suite)) / file.name, urls)
        for entry in entries
        for urls in [templates(entry.suite, mirrors, offline=offline)]
        for file in entry.files
    ]
    with session(client) as http, ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        asked = [
            [pool.submit(_ask, http, address(url, file), file) for url in urls]
            for file, _, urls in wanted
        ]
        return [
            Availability(
                file=file,
                path=path,
                local=_local(path, file),
                answers=tuple(answer.result() for answer in answers),
            )
            for (file, path, _), answers in zip(wanted, asked, strict=True)
        ]


def _local(path: Path, file: PublishedFile) -> str:
    part = path.with_name(f"{path.name}.part")
    try:
        if path.is_file():
            sound(path, file)
            return "whole"
        return f"unfinished: {part.stat().st_size:,} bytes" if part.is_file() else "missing"
    except (Unsound, OSError) as error:
        return f"not the published file: {error}"


def _ask(client: httpx.Client, url: str, file: PublishedFile) -> Answer:
    try:
        length = _local_length(url) if is_local(url) else _remote_length(client, url)
    except (InputError, httpx.HTTPError, httpx.InvalidURL) as refusal:
        return Answer(url=url, available=False, detail=_reason(refusal))
    if length is not None and file.bytes is not None and length != file.bytes:
        detail = f"has {length:,} bytes where the file has {file.bytes:,}"
        return Answer(url=url, available=False, detail=detail)
    detail = "available" if length is None else f"available, {length:,} bytes"
    return Answer(url=url, available=True, detail=detail)


def _reason(refusal: Exception) -> str:
    if isinstance(refusal, httpx.TimeoutException):
        return f"no answer in time ({type(refusal).__name__})"
    return str(refusal) or type(refusal).__name__


def _local_length(url: str) -> int:
    try:
        return local_path(url).stat().st_size
    except OSError as error:
        raise InputError(error.strerror or str(error)) from error


def _remote_length(client: httpx.Client, url: str) -> int | None:
    """The length a mirror announces, or None if it does not say.

    Raises:
        InputError: it does not offer the file; the message gives the reason.
        HTTPError: it cannot be reached, or its redirects cannot be followed.
    """
    headers = {"Accept-Encoding": "identity"}
    response = client.head(url, headers=headers, follow_redirects=True)
    if response.status_code in _NO_HEAD:
        # The body is never read: leaving the block closes the connection.
        with client.stream("GET", url, headers=headers, follow_redirects=True) as response:
            return _announced(response)
    return _announced(response)


def _announced(response: httpx.Response) -> int | None:
    if response.status_code != httpx.codes.OK:
        raise InputError(f"HTTP {response.status_code}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise InputError("a web page instead of the file")
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isascii() and length.isdecimal() and len(length) < 19 else None
