"""The package's version, apart so that a build reads it without importing torch; and others'."""

from importlib import metadata

__version__ = "0.1.0"


def installed_version(package: str) -> str | None:
    """Of a package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
