"""The command line."""

from factory.cli.commands import app

__all__ = ["app"]
