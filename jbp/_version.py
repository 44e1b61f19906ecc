"""The version, in the source itself: `pyproject.toml` reads it here, and a source tree needs no installed metadata."""

__version__ = "0.1.0"
