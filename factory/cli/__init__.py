"""The command line: a command parses its arguments, calls one function and prints the result."""

from factory.cli.app import app

__all__ = ["app"]
