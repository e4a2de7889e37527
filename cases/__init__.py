"""The built-in cases, and the command line."""

from .script import run

__all__ = ["run"]
