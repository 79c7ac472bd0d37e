"""Addresses of mirrors, and the HTTP client that asks them."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx

from tql_offline.datasets import catalogue
from tql_offline.datasets.catalogue import PublishedFile
from tql_offline.errors import InputError

OFFLINE_VARIABLE = "TQL_OFFLINE_LOCAL_ONLY"
"""If set to anything but 0 in the environment, only mirrors that are local folders are used."""

_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_MAX_REDIRECTS = 5


def local_only() -> bool:
    """Whether the environment forbids the network."""
    return os.environ.get(OFFLINE_VARIABLE, "0") not in {"", "0"}


def templates(suite: str, mirrors: Sequence[str] | None, *, offline: bool) -> list[str]:
    """Mirror addresses with `{file}` in them, in the order in which to try them.

    Args:
        suite: the suite whose mirrors are used if none are given.
        mirrors: addresses or folders to use instead.
        offline: leave out every mirror that is not a local folder.

    Raises:
        InputError: a given mirror is not an address.
    """
    urls = mirrors or catalogue.mirrors(suite)
    found = [_template(url) for url in urls]
    return [template for template in found if is_local(template) or not offline]


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


def address(template: str, file: PublishedFile) -> str:
    """The address at which a mirror keeps a file."""
    # Not str.format: a mirror's address may hold other braces.
    return template.replace("{file}", file.name).replace("{folder}", file.folder)


def is_local(url: str) -> bool:
    """Whether a mirror is a local folder."""
    return urlsplit(url).scheme == "file"


def local_path(url: str) -> Path:
    """The path of a `file://` address."""
    return Path(url2pathname(urlsplit(url).path))


def session(client: httpx.Client | None) -> AbstractContextManager[httpx.Client]:
    """The given client, left open, or a new one: connect 10 s, read 30 s, 5 redirects.

    Raises:
        InputError: the proxy named in the environment cannot be used.
    """
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
