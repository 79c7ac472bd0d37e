"""The package's version, apart so that a build reads it without importing torch."""

__version__ = "0.1.0"
