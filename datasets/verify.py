"""Checks that a file on disk is the published one, by its length and digest or its contents."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

from tql_offline.datasets.catalogue import Entry, PublishedFile
from tql_offline.datasets.digests import file_sha256
from tql_offline.datasets.findings import Finding
from tql_offline.errors import InputError

COLUMNS = ("observations", "actions", "terminals")
"""Columns that every OGBench file has, among others."""

HDF5_COLUMNS = (*COLUMNS, "rewards")
"""Columns that every D4RL file has, among others."""

MAX_FILE_BYTES = 64 * 2**30
"""No published file comes near: a mirror that announces more, or a zip that claims more, lies."""

_NPZ_START, _HDF5_START = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"


class Unsound(Exception):  # noqa: N818  (an answer, caught by its callers, not an error of theirs)
    """A file is not the published one; the message gives the reason."""


def verify(path: Path, file: PublishedFile) -> str:
    """Check that a file on disk is the published one.

    Args:
        path: the file on disk.
        file: the catalogue's record of it.

    Returns:
        Its sha256.

    Raises:
        InputError: it is not; the message gives the reason.
    """
    try:
        return sound(path, file)
    except (Unsound, OSError) as error:
        raise InputError(
            f"{path} is not the published {file.name} ({error}); "
            "move it away, or download it again with --force"
        ) from error


def not_published(path: Path, entry: Entry, sha256: str) -> list[Finding]:
    """The finding that a file is not the one that is published under its name.

    Args:
        path: where the training file of the dataset lies.
        entry: the dataset; nothing is found if nobody has measured its file.
        sha256: the digest of what lies there.
    """
    file = entry.files[0]
    if file.sha256 in (None, sha256):
        return []
    told = (
        f"{path} is not the published {file.name}: its SHA-256 is {sha256} where that of "
        f"{entry.name} is {file.sha256}; run `tql-offline download {entry.name} --force`, or, if "
        "these data are meant, name them by their path, as results are compared by name"
    )
    return [Finding("warning", "not-published", told)]


def starts_like(file: PublishedFile, start: bytes) -> bool:
    """Whether the first bytes are those of the file's format."""
    return start.startswith(_HDF5_START if file.name.endswith(".hdf5") else _NPZ_START)


def tells_a_mix(file: PublishedFile) -> bool:
    """Whether `sound` refuses halves of two files of one length: by digest, or an npz's checksums.

    HDF5 files have no checksums as a rule, and open with any numbers in their columns.
    """
    return file.sha256 is not None or not file.name.endswith(".hdf5")


def sound(path: Path, file: PublishedFile) -> str:
    """Check that a file is the published one, and return its sha256.

    Raises:
        Unsound: it is not; the message gives the reason.
    """
    length = path.stat().st_size
    if file.bytes is not None and length != file.bytes:
        raise Unsound(f"{length} bytes where the file has {file.bytes}")
    digest = file_sha256(path)
    if file.sha256 is None:
        (_check_hdf5 if file.name.endswith(".hdf5") else _check_zip)(path)
    elif digest != file.sha256:
        raise Unsound(f"sha256 {digest} where the file has {file.sha256}")
    return digest


def _check_zip(path: Path) -> None:
    """Check an npz file without unpacking any array: its checksums, then its columns."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive.infolist())
            damaged = archive.testzip()
    except Unsound:
        raise
    # It is undocumented what zipfile and its decompressors raise on hostile bytes.
    except Exception as error:
        raise Unsound(f"not a sound npz file: {error}") from error
    if damaged is not None:
        raise Unsound(f"column {damaged} fails its checksum")


def _check_members(members: Sequence[zipfile.ZipInfo]) -> None:
    missing = {f"{column}.npy" for column in COLUMNS} - {member.filename for member in members}
    if missing:
        raise Unsound(f"lacks {', '.join(sorted(missing))}")
    for member in members:
        if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise Unsound(f"{member.filename} is packed by a method that npz files do not use")
    if sum(member.file_size for member in members) > MAX_FILE_BYTES:
        raise Unsound(f"unpacks to more than {MAX_FILE_BYTES} bytes")


def _check_hdf5(path: Path) -> None:
    """Check that an HDF5 file is as long as it says and has the columns, reading no array."""
    import h5py  # slow to import, so only if a file's digest is not known

    from tql_offline.datasets.hdf5 import opened_hdf5

    try:
        with opened_hdf5(path) as file:
            # A link that is not hard could lead out of the file.
            links = {name: file.get(name, getlink=True) for name in HDF5_COLUMNS}
            missing = [
                name
                for name, link in links.items()
                if not isinstance(link, h5py.HardLink) or not isinstance(file[name], h5py.Dataset)
            ]
    # The errors that h5py raises on hostile bytes.
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise Unsound(f"not a sound HDF5 file: {error}") from error
    if missing:
        raise Unsound(f"lacks {', '.join(missing)}")
