"""Fetch published datasets from their mirrors, resumably, and never leave a bad file behind.

    <folder>/cube-double-play-v0.npz             only ever a complete, verified file
    <folder>/cube-double-play-v0.npz.part        the bytes so far
    <folder>/cube-double-play-v0.npz.part.json   where they come from: url, validators, full length
    <folder>/cube-double-play-v0.npz.lock        held while a process downloads the file

A mirror either can be tried again (`_Interrupted`: no connection, timeout, 5xx, short body) or has
given its last word (`_Refused`: 403, 404, a web page, wrong bytes); the next mirror follows.
"""

import hashlib
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx
from filelock import FileLock, Timeout

from tql_offline.datasets import catalogue
from tql_offline.datasets.catalogue import PublishedFile
from tql_offline.errors import InputError
from tql_offline.runs import read_json, write_json

Progress = Callable[[str, int, int], None]
"""Called with a file's name, the bytes that are there so far, and its full length in bytes."""

COLUMNS = ("observations", "actions", "terminals")
"""What every OGBench file holds, whatever else is in it."""

MAX_FILE_BYTES = 64 * 2**30
"""No published file comes near: a mirror announcing more, or a zip unpacking to more, lies."""

_CHUNK_BYTES = 64 * 2**10
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_MAX_REDIRECTS = 5
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


class _Refused(Exception):  # noqa: N818  (an answer, caught here, not an error for the caller)
    """The mirror's last word on a file; the next mirror follows."""


class _Interrupted(Exception):  # noqa: N818
    """A failure that another try at the same mirror may mend."""


class _Unsound(Exception):  # noqa: N818
    """A file that is not the published one, with the reason."""


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """A verified file on disk.

    Attributes:
        path: where it lies.
        bytes: its length.
        sha256: its digest, measured now.
        url: where it came from, or None if it was already there.
    """

    path: Path
    bytes: int
    sha256: str
    url: str | None


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """What `.part.json` says of the bytes in `.part`."""

    url: str
    length: int
    etag: str | None
    last_modified: str | None


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One file to fetch and the means to do it."""

    file: PublishedFile
    path: Path
    client: httpx.Client
    retries: int
    progress: Progress
    sleep: Callable[[float], None]

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
        """Bytes in `.part`."""
        return self.part.stat().st_size if self.part.is_file() else 0

    def discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _no_progress(_file: str, _received: int, _length: int) -> None:
    pass


def download(
    name: str,
    *,
    folder: Path,
    mirrors: Sequence[str] | None = None,
    progress: Progress = _no_progress,
    client: httpx.Client | None = None,
    retries: int = 3,
    force: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Downloaded]:
    """Bring a dataset's training and validation file into a folder.

    Each file is checked by its published length and sha256 where these are known, else by the
    length the mirror announces, the zip checksums and the columns. An unfinished `.part` is
    continued. A file that is there and passes is kept as it is.

    Args:
        name: dataset name; a `singletask` one means the file that it relabels.
        folder: where the files go; it is made if need be.
        mirrors: addresses, tried in order, with `{file}` where the file's name goes (without it,
            the name is appended); http, https, `file:///folder` or a folder's path. None: the
            catalogue's.
        progress: called after every piece received.
        client: HTTP client whose timeouts and redirect bound apply; None: connect 10 s, read 30 s,
            5 redirects.
        retries: further tries per mirror and file after a failure that may pass.
        force: fetch again, and replace what is there once the new file is verified.
        sleep: waits the given seconds between tries: 1, 2, 4, ...

    Returns:
        The training file, the validation file.

    Raises:
        InputError: unknown name or mirror, a bad file in the way, no space, no permission, another
            process at the same file, or every mirror failed (each is named with its reason).
    """
    files = catalogue.find(name).files
    templates = [_template(mirror) for mirror in mirrors or _catalogue_mirrors()]
    try:
        with _session(client) as session:
            jobs = [
                _Job(
                    file=file,
                    path=_path_in(folder, file.name),
                    client=session,
                    retries=retries,
                    progress=progress,
                    sleep=sleep,
                )
                for file in files
            ]
            return _run(jobs, templates, force)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written to ({error.strerror or error}); "
            "make room or permit writing there, or name another folder"
        ) from error


def _run(jobs: list[_Job], templates: list[str], force: bool) -> list[Downloaded]:
    # All are looked at first: a bad file in the way shows before anything is fetched.
    present = [_present(job.path, job.file, force) for job in jobs]
    done = []
    for job, there in zip(jobs, present, strict=True):
        fetched = there or _fetch_alone(job, templates, force)
        # A mirror that has just worked goes first for the next file.
        templates.sort(key=lambda template: _address(template, job.file.name) != fetched.url)
        done.append(fetched)
    return done


def verify(path: Path, file: PublishedFile) -> str:
    """Check that a file on disk is the published one.

    Args:
        path: the file on disk.
        file: what the catalogue says of it.

    Returns:
        Its sha256.

    Raises:
        InputError: it is not, with the reason.
    """
    try:
        return _sound(path, file)
    except (_Unsound, OSError) as error:
        raise InputError(
            f"{path} is not the published {file.name} ({error}); "
            "move it away, or download it again with --force"
        ) from error


def _catalogue_mirrors() -> list[str]:
    return [mirror.url for mirror in catalogue.mirrors()]


def _template(mirror: str) -> str:
    """A mirror's address with `{file}` in it."""
    if mirror and Path(mirror).is_dir():
        mirror = Path(mirror).resolve().as_uri()
    if not _is_address(mirror):
        raise InputError(
            f"mirror {mirror!r} is no address of a host or folder; "
            "write it as https://host/folder or file:///folder"
        )
    return mirror if "{file}" in mirror else f"{mirror.rstrip('/')}/{{file}}"


def _is_address(mirror: str) -> bool:
    try:
        address = urlsplit(mirror)
        remote = address.scheme in {"http", "https"} and bool(address.hostname)
    except ValueError:
        return False
    return remote or (address.scheme == "file" and address.netloc in {"", "localhost"})


def _address(template: str, file: str) -> str:
    # Not str.format: a mirror's address may hold other braces.
    return template.replace("{file}", file)


def _path_in(folder: Path, file: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", file):
        raise InputError(f"file name {file!r} could leave {folder}; mend it in the catalogue")
    return folder / file


def _present(path: Path, file: PublishedFile, force: bool) -> Downloaded | None:
    if force or not path.exists():
        return None
    digest = verify(path, file)
    return Downloaded(path=path, bytes=path.stat().st_size, sha256=digest, url=None)


def _session(client: httpx.Client | None) -> AbstractContextManager[httpx.Client]:
    if client is not None:
        return nullcontext(client)
    try:
        return httpx.Client(timeout=_TIMEOUT, max_redirects=_MAX_REDIRECTS)
    # httpx cannot use the proxy setting: an unknown scheme, or socks without its package.
    except (ImportError, ValueError) as error:
        raise InputError(
            f"the proxy named in the environment cannot be used ({error}); "
            "unset ALL_PROXY, or `pip install 'httpx[socks]'` for a socks5:// proxy"
        ) from error


def _fetch_alone(job: _Job, templates: Iterable[str], force: bool) -> Downloaded:
    """Fetch one file while no other process does."""
    job.path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(job.lock, timeout=0):
            try:
                # Another process may have finished it between the first look and the lock.
                return _present(job.path, job.file, force) or _fetch(job, templates)
            finally:
                # Windows keeps a file that is open; the next download takes it over.
                with suppress(OSError):
                    job.lock.unlink()
    except Timeout as error:
        raise InputError(
            f"another process is downloading {job.path}; wait until it has finished"
        ) from error


def _fetch(job: _Job, templates: Iterable[str]) -> Downloaded:
    """Try the mirrors in turn, the one that an unfinished part came from first."""
    origin = _origin(job)
    urls = [_address(template, job.file.name) for template in templates]
    urls.sort(key=lambda url: origin is None or url != origin.url)
    reasons = []
    for url in urls:
        try:
            return _fetch_from(url, job)
        except _Refused as refusal:
            reasons.append(f"{url} ({refusal})")
    raise InputError(
        f"no mirror gave {job.file.name}: {', '.join(reasons)}; "
        f"name another with --mirror, or bring the file by other means and save it as {job.path}"
    )


def _fetch_from(url: str, job: _Job) -> Downloaded:
    """Try one mirror until it gives the file, refuses it, or the retries are spent."""
    tries = 0
    while True:
        try:
            return _attempt(url, job)
        except _Interrupted as interruption:
            tries += 1
            if tries > job.retries:
                raise _Refused(f"{interruption}; tries: {tries}") from interruption
            job.sleep(2.0 ** (tries - 1))


def _attempt(url: str, job: _Job) -> Downloaded:
    if urlsplit(url).scheme == "file":
        _copy(url, job)
        return _settle(url, job, resumed=False)
    origin = _origin(job)
    resumed = origin is not None and origin.url == url
    if not resumed or origin is None or job.received() < origin.length:
        _receive(url, origin if resumed else None, job)
    return _settle(url, job, resumed=resumed)


def _settle(url: str, job: _Job, *, resumed: bool) -> Downloaded:
    """Verify the finished part and rename it into place."""
    try:
        digest = _sound(job.part, job.file)
    except _Unsound as reason:
        job.discard()
        # The bytes from before the interruption may be at fault; a fresh copy deserves a try.
        raise (_Interrupted if resumed else _Refused)(str(reason)) from reason
    job.part.replace(job.path)
    job.note.unlink(missing_ok=True)
    return Downloaded(path=job.path, bytes=job.path.stat().st_size, sha256=digest, url=url)


def _copy(url: str, job: _Job) -> None:
    """Copy from a mirror that is a folder of this machine."""
    source = Path(url2pathname(urlsplit(url).path))
    pieces = _read(source)
    first = next(pieces, b"")
    length = source.stat().st_size
    _check_length(length, job)
    job.discard()
    _check_space(length, job)
    _write(chain([first], pieces), 0, length, job)


def _read(source: Path) -> Iterator[bytes]:
    """Read a mirror's file piece by piece; its faults are the mirror's, not the target folder's."""
    try:
        with source.open("rb") as file:
            yield from iter(lambda: file.read(_CHUNK_BYTES), b"")
    except OSError as error:
        raise _Refused(error.strerror or str(error)) from error


def _receive(url: str, origin: _Origin | None, job: _Job) -> None:
    """Receive a file, or the rest of it, into the part."""
    headers = _headers(origin, job.received())
    try:
        with job.client.stream("GET", url, headers=headers, follow_redirects=True) as response:
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
    # Compressed on the way, neither lengths nor ranges would be those of the file.
    headers = {"Accept-Encoding": "identity"}
    if origin is not None:
        headers["Range"] = f"bytes={received}-"
        validator = _guard(origin.etag) or _guard(origin.last_modified)
        headers |= {"If-Range": validator} if validator else {}
    return headers


def _guard(validator: str | None) -> str | None:
    """The validator if If-Range may carry it; a weak ETag never matches (RFC 9110, 13.1.5)."""
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
        _check_space(length - received, job)
    else:
        received, length = 0, _announced_length(response, job)
        # Only a body that begins like the file may replace what an earlier try has brought.
        pieces = _checked_start(pieces)
        _check_space(length - job.received(), job)
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


def _check_space(needed: int, job: _Job) -> None:
    free = shutil.disk_usage(job.path.parent).free
    if needed > free:
        raise InputError(
            f"{job.path.parent} has {free / 1e9:.2f} GB free where {job.file.name} needs "
            f"{needed / 1e9:.2f} GB more; make room or name another folder"
        )


def _checked_start(pieces: Iterator[bytes]) -> Iterator[bytes]:
    first = next(pieces, b"")
    if not first.startswith(b"PK\x03\x04"):
        raise _Refused("sends something that is not an npz file")
    return chain([first], pieces)


def _begin(url: str, length: int, response: httpx.Response, job: _Job) -> None:
    """Start an empty part and note where its bytes will come from."""
    # In this order: killed in between, an empty part is taken for what it is.
    job.part.write_bytes(b"")
    origin = _Origin(
        url=url,
        length=length,
        etag=response.headers.get("ETag"),
        last_modified=response.headers.get("Last-Modified"),
    )
    write_json(job.note, asdict(origin))


def _write(pieces: Iterator[bytes], received: int, length: int, job: _Job) -> None:
    """Append the pieces to the part; all that has come stays, however it ends."""
    with job.part.open("ab") as file:
        for piece in pieces:
            received += len(piece)
            if received > length:
                raise _Refused(f"sends more than the {length} bytes it announces")
            file.write(piece)
            job.progress(job.file.name, received, length)
        file.flush()
        os.fsync(file.fileno())
    if received < length:
        raise _Interrupted(f"broke off after {received} of {length} bytes")


def _origin(job: _Job) -> _Origin | None:
    """Where the part's bytes come from; None if there is nothing that can be continued."""
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
        TypeError: it is not what `_begin` writes.
    """
    origin = _Origin(**document)
    texts = [origin.etag, origin.last_modified]
    if not isinstance(origin.length, int) or not all(isinstance(t, str | None) for t in texts):
        raise TypeError
    return origin


def _sound(path: Path, file: PublishedFile) -> str:
    """The sha256 of a file that is the published one.

    Raises:
        _Unsound: it is not, with the reason.
    """
    length = path.stat().st_size
    if file.bytes is not None and length != file.bytes:
        raise _Unsound(f"{length} bytes where the file has {file.bytes}")
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if file.sha256 is None:
        _check_zip(path)
    elif digest != file.sha256:
        raise _Unsound(f"sha256 {digest} where the file has {file.sha256}")
    return digest


def _check_zip(path: Path) -> None:
    """Check an npz file without unpacking any array: its checksums, then its columns."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive.infolist())
            damaged = archive.testzip()
    except _Unsound:
        raise
    # What zipfile and its packers raise on hostile bytes is in no document.
    except Exception as error:
        raise _Unsound(f"not a sound npz file: {error}") from error
    if damaged is not None:
        raise _Unsound(f"column {damaged} fails its checksum")


def _check_members(members: Sequence[zipfile.ZipInfo]) -> None:
    missing = {f"{column}.npy" for column in COLUMNS} - {member.filename for member in members}
    if missing:
        raise _Unsound(f"lacks {', '.join(sorted(missing))}")
    for member in members:
        if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise _Unsound(f"{member.filename} is packed by a method that npz files do not use")
    if sum(member.file_size for member in members) > MAX_FILE_BYTES:
        raise _Unsound(f"unpacks to more than {MAX_FILE_BYTES} bytes")
