"""This package's version, kept apart so that builds need not import torch; and others'."""

from importlib import metadata

__version__ = "0.1.0"


def installed_version(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
