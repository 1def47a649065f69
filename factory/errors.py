"""Every error the factory raises on purpose. One line each: what failed, the value, what exists, what to do.

FactoryError
├── SpecError            a YAML in domains/ is wrong
├── ModelResolutionError       a model reference cannot be resolved, or its checksum does not match
├── DataError            a source, a data set or the router cannot be built; a file of votes cannot be read
├── TrainingError        teacher and student do not fit, or a training run cannot go on
├── StorageError         the disk refuses: full, read-only, no such folder
├── UsageError           a command was given what does not fit; the command's exit code is 2
├── ExportError          an export cannot be made, or is not what the registered student is
├── ServeError           the server cannot start, or an engine cannot answer
└── RegistryError        an unknown name, a bad name, a damaged or half-made version
    └── GateError        a version that failed its gates shall get an alias; the command's exit code is 2
"""

from typing import ClassVar


class FactoryError(Exception):
    """``except FactoryError`` catches every error with a one-line message meant for the user."""

    exit_code: ClassVar[int] = 1  # of the command that ends with it


class SpecError(FactoryError):
    """Raised with all mistakes of all files, one a line."""


class ModelResolutionError(FactoryError):
    """Raised when a ``hub:``, ``pypi:`` or ``path:`` reference cannot become a checked local folder."""


class DataError(FactoryError):
    """Raised when a source or a file of votes is missing, empty or malformed, or a data set has nothing left."""


class TrainingError(FactoryError):
    """Raised when a teacher and a student do not fit, or training cannot start or go on."""


class StorageError(FactoryError):
    """Raised where the disk refuses a file or folder: no space, no permission, no such folder."""


class UsageError(FactoryError):
    """Raised where a command's arguments do not fit each other, or name what does not exist."""

    exit_code: ClassVar[int] = 2


class ExportError(FactoryError):
    """Raised when a format does not fit a student, or its parity is outside the format's bound; nothing is left behind."""


class ServeError(FactoryError):
    """Raised when the server cannot start (a port, a keys file, a missing package) or an engine cannot answer."""


class RegistryError(FactoryError):
    """Raised for unknown or unsafe names, damaged files and versions that are not whole."""


class GateError(RegistryError):
    """Raised where a version that failed its gates would get an alias; an exit code of its own, for scripts."""

    exit_code: ClassVar[int] = 2


def in_one_line(error: BaseException) -> str:
    """``in_one_line(error)``: what another library said, for the end of our own line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
