"""Resumable download of published datasets from their mirrors, which never leaves a bad file.

    <folder>/cube-double-play-v0.npz             only ever a complete, verified file
    <folder>/cube-double-play-v0.npz.part        the bytes so far
    <folder>/cube-double-play-v0.npz.part.json   where they come from: url, validators, full length
    <folder>/cube-double-play-v0.npz.lock        held while a process downloads the file

A failed mirror either can be tried again (`_Interrupted`: no connection, timeout, 5xx, short body)
or has failed for good (`_Refused`: 403, 404, a web page, wrong bytes), and the next one is tried.
Several files can be fetched at once; one that no mirror provides does not stop the others.
"""

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import httpx

from tql_offline.datasets import catalogue
from tql_offline.datasets.catalogue import Entry, PublishedFile
from tql_offline.datasets.mirrors import (
    OFFLINE_VARIABLE,
    address,
    is_local,
    local_only,
    local_path,
    session,
    templates,
)
from tql_offline.datasets.names import suite_folder
from tql_offline.datasets.verify import (
    MAX_FILE_BYTES,
    Unsound,
    sound,
    starts_like,
    tells_a_mix,
    verify,
)
from tql_offline.errors import InputError
from tql_offline.files import flush, nearest_existing, read_json, write_json
from tql_offline.locks import locked

Progress = Callable[[str, int, int], None]
"""Called with a file's name, the bytes received so far and its full length in bytes; from several
threads if several files are fetched at once.
"""

_CHUNK_BYTES = 64 * 2**10
_FAREWELL_SECONDS = 2.0
"""How long Ctrl-C waits for the threads of the files to notice it."""
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


class _Refused(Exception):  # noqa: N818  (an answer, caught here, not an error for the caller)
    """A mirror's final failure on a file; the next mirror is tried."""


class _Interrupted(Exception):  # noqa: N818
    """A failure that another try at the same mirror may fix."""


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """A verified file on disk.

    Attributes:
        path: where it is.
        bytes: its length.
        sha256: its digest, computed now.
        url: where it came from, or None if it already existed.
    """

    path: Path
    bytes: int
    sha256: str
    url: str | None


Arrived = Callable[[Downloaded], None]
"""Called with each file as soon as it is complete, from the thread that fetched it."""


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """The contents of `.part.json`: where the bytes in `.part` come from."""

    url: str
    length: int
    etag: str | None
    last_modified: str | None


class _Space:
    """Disk space set aside for the files being fetched, so that none is promised twice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._coming: dict[Path, int] = {}

    def claim(self, path: Path, needed: int, freed: int = 0) -> None:
        """Set bytes aside for the rest of a file, whose start will free some.

        Raises:
            InputError: the disk has too little left besides what is set aside for others.
        """
        with self._lock:
            others = sum(
                left
                for other, left in self._coming.items()
                if other.parent == path.parent and other != path
            )
            _require_free(path.parent, needed - freed + others, path.name)
            self._coming[path] = needed

    def used(self, path: Path, written: int) -> None:
        """Reduce a file's claim by the bytes written."""
        with self._lock:
            self._coming[path] -= written

    def release(self, path: Path) -> None:
        """Drop the claim of a file that has arrived or failed."""
        with self._lock:
            self._coming.pop(path, None)


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """The settings and state shared by all files of one call."""

    client: httpx.Client
    retries: int
    force: bool
    progress: Progress
    arrived: Arrived
    sleep: Callable[[float], None]
    space: _Space = field(default_factory=_Space)
    stop: threading.Event = field(default_factory=threading.Event)
    worked: set[str] = field(default_factory=set)
    """Mirrors that have provided a file; they are tried first for the next one."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One file to fetch and the means to do it."""

    file: PublishedFile
    path: Path
    templates: Sequence[str]
    shared: _Shared

    @property
    def part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part.json")

    @property
    def lock(self) -> Path:
        return self.path.with_name(f"{self.path.name}.lock")

    def received(self) -> int:
        """Number of bytes in `.part`."""
        return self.part.stat().st_size if self.part.is_file() else 0

    def discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _no_progress(_file: str, _received: int, _length: int) -> None:
    pass


def _unannounced(_file: Downloaded) -> None:
    pass


def download(
    names: str | Iterable[str],
    *,
    folder: Path | None = None,
    mirrors: Sequence[str] | None = None,
    progress: Progress = _no_progress,
    arrived: Arrived = _unannounced,
    client: httpx.Client | None = None,
    retries: int = 3,
    force: bool = False,
    allow_broken: bool = False,
    offline: bool = False,
    workers: int = 1,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Downloaded]:
    """Download all files of some datasets.

    Each file is checked by its published length and sha256 if known, otherwise by the length the
    mirror announces, the zip checksums and the columns. An unfinished `.part` is continued where
    something would tell a rest that belongs to another file. An existing file that passes is kept
    as it is.

    Args:
        names: one or more dataset names; a `singletask` one means the file that it relabels.
        folder: where the files go, created if need be. None: where each suite's own package
            keeps them.
        mirrors: addresses, tried in order, with `{file}` where the file's name goes (without it,
            the name is appended); http, https, `file:///folder` or a folder's path. None: the
            catalogue's.
        progress: called after every piece received.
        arrived: called with each file once it is complete, even if another one fails.
        client: HTTP client whose timeouts and redirect limit apply; None: connect 10 s, read 30 s,
            5 redirects.
        retries: further tries per mirror and file after a failure that may be temporary.
        force: fetch again, and replace existing files once the new ones are verified.
        allow_broken: also fetch datasets that the catalogue knows to be wrong.
        offline: use only mirrors that are local folders, as with `$TQL_OFFLINE_LOCAL_ONLY`.
        workers: number of files fetched at once.
        sleep: waits the given seconds between tries: 1, 2, 4, ...

    Returns:
        The files in the order of the names; for OGBench, training file then validation file.

    Raises:
        InputError: unknown name or mirror, a broken dataset, a bad file in the way, no space, no
            permission, another process at the same file, or every mirror failed (each is named
            with its reason). By then every file that could be fetched has been.
    """
    names = [names] if isinstance(names, str) else names
    entries = list(dict.fromkeys(catalogue.find(name) for name in names))
    for entry in entries:
        catalogue.require_sound(entry, allow_broken)
        _require_files(entry)
    offline = offline or local_only()
    with session(client) as http:
        shared = _Shared(
            client=http,
            retries=retries,
            force=force,
            progress=progress,
            arrived=arrived,
            sleep=sleep,
        )
        jobs = [
            _Job(
                file=file,
                path=_path_in(folder or suite_folder(entry.suite), file.name),
                templates=templates(entry.suite, mirrors, offline=offline),
                shared=shared,
            )
            for entry in entries
            for file in entry.files
        ]
        return _run(jobs, workers)


def _require_files(entry: Entry) -> None:
    if not entry.files:
        raise InputError(
            f"the files of {entry.name} are Minari's own; fetch it by "
            f"`tql-offline download {entry.name}` or `minari download {entry.name}`"
        )


def _path_in(folder: Path, file: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", file):
        raise InputError(f"file name {file!r} could leave {folder}; mend it in the catalogue")
    return folder / file


def _run(jobs: list[_Job], workers: int) -> list[Downloaded]:
    # All are checked first: a bad file in the way, or too small a disk, is found before anything is
    # fetched.
    found = [_present(job) for job in jobs]
    missing = [job for job, there in zip(jobs, found, strict=True) if there is None]
    _require_room(missing)
    for job, there in zip(jobs, found, strict=True):
        if there is not None:
            job.shared.arrived(there)
    fetched = iter(_fetch_all(missing, workers))
    return [there or next(fetched) for there in found]


def _present(job: _Job) -> Downloaded | None:
    if job.shared.force or not job.path.exists():
        return None
    digest = verify(job.path, job.file)
    return Downloaded(path=job.path, bytes=job.path.stat().st_size, sha256=digest, url=None)


def _require_room(jobs: list[_Job]) -> None:
    """Refuse files that are known not to fit together."""
    for folder in {job.path.parent for job in jobs}:
        here = [job for job in jobs if job.path.parent == folder]
        needed = sum(max((job.file.bytes or 0) - job.received(), 0) for job in here)
        what = here[0].path.name if len(here) == 1 else f"{len(here)} files"
        _require_free(folder, needed, what)


def _require_free(folder: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(nearest_existing(folder)).free
    if needed > free:
        raise InputError(
            f"{folder} has {free / 1e9:.2f} GB free where {what} needs "
            f"{needed / 1e9:.2f} GB more; make room or name another folder"
        )


def _fetch_all(jobs: list[_Job], workers: int) -> list[Downloaded]:
    """Fetch every file that can be fetched.

    Raises:
        InputError: some files cannot; each is named with its reasons.
    """
    alone = workers == 1 or len(jobs) < 2
    outcomes = [_outcome(job) for job in jobs] if alone else _at_once(jobs, workers)
    failures = [outcome for outcome in outcomes if isinstance(outcome, InputError)]
    if len(failures) > 1:
        raise InputError(
            f"{len(failures)} of {len(jobs)} files did not come: {'; '.join(map(str, failures))}"
        )
    for failure in failures:
        raise failure
    return [outcome for outcome in outcomes if isinstance(outcome, Downloaded)]


def _outcome(job: _Job) -> Downloaded | InputError:
    try:
        fetched = _fetch_alone(job)
    except InputError as error:
        return error
    except OSError as error:
        failure = InputError(
            f"{job.path.parent} cannot be written to ({error.strerror or error}); "
            "make room or permit writing there, or name another folder"
        )
        failure.__cause__ = error
        return failure
    finally:
        job.shared.space.release(job.path)
    job.shared.arrived(fetched)
    return fetched


def _at_once(jobs: list[_Job], workers: int) -> list[Downloaded | InputError]:
    """Fetch several files at a time.

    The threads are daemons, and Ctrl-C waits for them only briefly: one may be waiting for a silent
    mirror. What a file has received stays in its part, however its thread ends.
    """
    outcomes: dict[int, Downloaded | InputError] = {}
    faults: list[BaseException] = []
    stop = jobs[0].shared.stop
    waiting: SimpleQueue[int] = SimpleQueue()
    for number in range(len(jobs)):
        waiting.put(number)

    def work() -> None:
        with suppress(Empty):
            while not stop.is_set():
                number = waiting.get_nowait()
                try:
                    outcomes[number] = _outcome(jobs[number])
                except BaseException as fault:
                    faults.append(fault)
                    stop.set()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(jobs)))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        stop.set()
        deadline = time.monotonic() + _FAREWELL_SECONDS
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        raise
    if faults:
        raise faults[0]
    return [outcomes[number] for number in range(len(jobs))]


def _fetch_alone(job: _Job) -> Downloaded:
    """Fetch one file under a lock that keeps other processes out."""
    busy = f"another process is downloading {job.path}; wait until it has finished"
    with locked(job.lock, busy, removed=True):
        # Another process may have finished it between the first look and the lock.
        return _present(job) or _fetch(job)


def _fetch(job: _Job) -> Downloaded:
    """Try the mirrors in turn, the one that an unfinished part came from first."""
    if not job.templates:
        raise InputError(
            f"{job.path} is not there, and only local files may be used (--offline or "
            f"${OFFLINE_VARIABLE}); go online, or bring the file by other means and save it there"
        )
    origin = _origin(job)
    reasons = []
    for template in sorted(job.templates, key=lambda mirror: _rank(mirror, origin, job)):
        url = address(template, job.file)
        try:
            fetched = _fetch_from(url, job)
        except _Refused as refusal:
            reasons.append(f"{url} ({refusal})")
        else:
            job.shared.worked.add(template)
            return fetched
    raise InputError(
        f"no mirror gave {job.file.name}: {', '.join(reasons)}; "
        f"name another with --mirror, or bring the file by other means and save it as {job.path}"
    )


def _rank(template: str, origin: _Origin | None, job: _Job) -> tuple[bool, bool]:
    """Sort key of a mirror: first if it began this file, then if it has provided another."""
    began = origin is not None and address(template, job.file) == origin.url
    return not began, template not in job.shared.worked


def _fetch_from(url: str, job: _Job) -> Downloaded:
    """Try one mirror until it gives the file, refuses it, or the retries are spent."""
    tries = 0
    while True:
        try:
            return _attempt(url, job)
        except _Interrupted as interruption:
            tries += 1
            if tries > job.shared.retries:
                raise _Refused(f"{interruption}; tries: {tries}") from interruption
            job.shared.sleep(2.0 ** (tries - 1))


def _attempt(url: str, job: _Job) -> Downloaded:
    if is_local(url):
        _copy(url, job)
        return _settle(url, job, resumed=False)
    origin = _origin(job)
    resumed = origin is not None and origin.url == url and _may_continue(origin, job)
    if not resumed or origin is None or job.received() < origin.length:
        _receive(url, origin if resumed else None, job)
    return _settle(url, job, resumed=resumed)


def _may_continue(origin: _Origin, job: _Job) -> bool:
    """Whether something would tell a rest that belongs to another file, if a rest is missing."""
    is_complete = job.received() == origin.length
    return is_complete or _validator(origin) is not None or tells_a_mix(job.file)


def _settle(url: str, job: _Job, *, resumed: bool) -> Downloaded:
    """Verify the finished part and rename it into place."""
    try:
        digest = sound(job.part, job.file)
    except Unsound as reason:
        job.discard()
        # The bytes from before the interruption may be at fault, so a fresh copy is tried.
        raise (_Interrupted if resumed else _Refused)(str(reason)) from reason
    job.part.replace(job.path)
    job.note.unlink(missing_ok=True)
    return Downloaded(path=job.path, bytes=job.path.stat().st_size, sha256=digest, url=url)


def _copy(url: str, job: _Job) -> None:
    """Copy from a mirror that is a local folder."""
    source = local_path(url)
    pieces = _read(source)
    first = next(pieces, b"")
    length = source.stat().st_size
    _check_length(length, job)
    job.discard()
    job.shared.space.claim(job.path, length)
    _write(chain([first], pieces), 0, length, job)


def _read(source: Path) -> Iterator[bytes]:
    """Read a mirror's file in pieces; errors are the mirror's, not the target folder's."""
    try:
        with source.open("rb") as file:
            yield from iter(lambda: file.read(_CHUNK_BYTES), b"")
    except OSError as error:
        raise _Refused(error.strerror or str(error)) from error


def _receive(url: str, origin: _Origin | None, job: _Job) -> None:
    """Receive a file, or the rest of it, into the part."""
    headers = _headers(origin, job.received())
    try:
        with job.shared.client.stream(
            "GET", url, headers=headers, follow_redirects=True
        ) as response:
            _check_status(response, origin, job)
            _check_content(response)
            _write_body(url, response, origin, job)
    except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL) as error:
        raise _Refused(f"cannot be followed: {error}") from error
    except httpx.TimeoutException as error:
        raise _Interrupted(f"no answer in time ({type(error).__name__})") from error
    except httpx.TransportError as error:
        raise _Interrupted(str(error) or type(error).__name__) from error


def _headers(origin: _Origin | None, received: int) -> dict[str, str]:
    # With compression, neither lengths nor ranges would be the file's. Each request has its own
    # connection, because stray bytes after an answer would be taken for the next one.
    headers = {"Accept-Encoding": "identity", "Connection": "close"}
    if origin is not None:
        headers["Range"] = f"bytes={received}-"
        validator = _validator(origin)
        headers |= {"If-Range": validator} if validator else {}
    return headers


def _validator(origin: _Origin) -> str | None:
    """What the mirror can compare its file with, if it gave anything."""
    return _guard(origin.etag) or _guard(origin.last_modified)


def _guard(validator: str | None) -> str | None:
    """The validator if allowed in If-Range; a weak ETag never matches (RFC 9110, 13.1.5)."""
    if validator is None or validator.startswith("W/") or not validator.isascii():
        return None
    return validator if validator.isprintable() else None


def _check_status(response: httpx.Response, origin: _Origin | None, job: _Job) -> None:
    code = response.status_code
    if code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and origin is not None:
        job.discard()
        raise _Interrupted("cannot continue the part (HTTP 416)")
    if code in {408, 429} or code >= 500:
        raise _Interrupted(f"HTTP {code}")
    if code != 200 and not (code == 206 and origin is not None):
        raise _Refused(f"HTTP {code}")


def _check_content(response: httpx.Response) -> None:
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in {"text/html", "application/xhtml+xml"}:
        raise _Refused("sends a web page instead of the file")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise _Refused(f"sends the file encoded as {encoding}")


def _write_body(url: str, response: httpx.Response, origin: _Origin | None, job: _Job) -> None:
    pieces = response.iter_raw(_CHUNK_BYTES)
    if response.status_code == 206 and origin is not None:
        received, length = job.received(), _range_length(response, origin, job)
        job.shared.space.claim(job.path, length - received)
    else:
        received, length = 0, _announced_length(response, job)
        # Only a body that begins like the file may replace the bytes of an earlier try.
        pieces = _checked_start(pieces, job.file)
        job.shared.space.claim(job.path, length, freed=job.received())
        _begin(url, length, response, job)
    _write(pieces, received, length, job)


def _range_length(response: httpx.Response, origin: _Origin, job: _Job) -> int:
    """The file's full length, if the answer continues exactly where the part ends."""
    text = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(text)
    start, end, length = (int(number) for number in match.groups()) if match else (-1, -1, -1)
    if (start, end, length) != (job.received(), origin.length - 1, origin.length):
        job.discard()
        raise _Interrupted(f"continues with the wrong bytes (Content-Range {text!r})")
    return length


def _announced_length(response: httpx.Response, job: _Job) -> int:
    text = response.headers.get("Content-Length", "")
    if not re.fullmatch(r"\d{1,18}", text):
        raise _Refused("does not announce the file's length")
    _check_length(int(text), job)
    return int(text)


def _check_length(length: int, job: _Job) -> None:
    known = job.file.bytes
    if known is not None and length != known:
        raise _Refused(f"announces {length} bytes where the file has {known}")
    if length > MAX_FILE_BYTES:
        raise _Refused(f"announces {length} bytes, more than any dataset has")


def _checked_start(pieces: Iterator[bytes], file: PublishedFile) -> Iterator[bytes]:
    first = next(pieces, b"")
    if not starts_like(file, first):
        kind = "HDF5" if file.name.endswith(".hdf5") else "npz"
        raise _Refused(f"sends something that is not an {kind} file")
    return chain([first], pieces)


def _begin(url: str, length: int, response: httpx.Response, job: _Job) -> None:
    """Start an empty part and note where its bytes will come from."""
    # In this order: if killed in between, an empty part is recognised as such.
    job.part.write_bytes(b"")
    origin = _Origin(
        url=url,
        length=length,
        etag=response.headers.get("ETag"),
        last_modified=response.headers.get("Last-Modified"),
    )
    write_json(job.note, asdict(origin))


def _write(pieces: Iterator[bytes], received: int, length: int, job: _Job) -> None:
    """Append the pieces to the part; what was received stays, however this ends."""
    with job.part.open("ab") as file:
        for piece in pieces:
            received += len(piece)
            if received > length:
                raise _Refused(f"sends more than the {length} bytes it announces")
            file.write(piece)
            job.shared.space.used(job.path, len(piece))
            job.shared.progress(job.file.name, received, length)
            if job.shared.stop.is_set():
                raise KeyboardInterrupt
        flush(file)
    if received < length:
        raise _Interrupted(f"broke off after {received} of {length} bytes")


def _origin(job: _Job) -> _Origin | None:
    """Where the part's bytes come from; None if there is nothing to continue."""
    if not job.received() or not job.note.is_file():
        return None
    try:
        origin = _parse_origin(read_json(job.note))
    except (InputError, TypeError):
        return None
    return origin if job.received() <= origin.length else None


def _parse_origin(document: dict[str, Any]) -> _Origin:
    """Read `.part.json`.

    Raises:
        TypeError: the document is not what `_begin` writes.
    """
    origin = _Origin(**document)
    texts = [origin.etag, origin.last_modified]
    if not isinstance(origin.length, int) or not all(isinstance(t, str | None) for t in texts):
        raise TypeError
    return origin
