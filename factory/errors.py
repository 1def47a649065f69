"""Every error the factory raises on purpose. One line each: what failed, the value, what exists, what to do.

FactoryError             exit code 1 of the command that ends with it, unless another is given here
├── SpecError            a YAML file in domains/ has mistakes
├── ModelResolutionError a model reference cannot be resolved, its checksum does not match, or an adapter does not fit
├── DataError            a source, a data set, the router or a file of votes cannot be used
├── TrainingError        teacher and student do not fit, or training cannot start or continue
├── StorageError         the disk is full or read-only, or a folder does not exist
├── UsageError           a command's arguments do not fit together; exit code 2
├── ExportError          an export cannot be made, or fails its parity check
├── ServeError           the server cannot start, or an engine cannot answer
└── RegistryError        an unknown or invalid name, a damaged or incomplete version
    └── GateError        a version that failed its gates cannot get an alias; exit code 3
"""

from typing import ClassVar

MAX_LINE = 1_000  # characters of a message, which may quote a file


class FactoryError(Exception):
    """``except FactoryError`` catches every error with a one-line message meant for the user.

    Whatever a message quotes, it is one printable line of at most ``MAX_LINE`` characters.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(_bounded_line(str(message)))


class SpecError(FactoryError):
    """``SpecError(*mistakes)``: raised with all mistakes of all files, one a line."""

    def __init__(self, *mistakes: object) -> None:
        Exception.__init__(self, *(_bounded_line(str(mistake)) for mistake in mistakes))

    def __str__(self) -> str:
        return "\n".join(self.args)


class ModelResolutionError(FactoryError):
    """Raised when a reference cannot become a checked local folder, or a folder of a model or an adapter cannot be loaded."""


class DataError(FactoryError):
    """Raised when a source or a file of votes is missing, empty or malformed, or a data set has nothing left."""


class TrainingError(FactoryError):
    """Raised when a teacher and a student do not fit, or training cannot start or go on."""


class StorageError(FactoryError):
    """Raised when a file or folder cannot be read or written: no space, no permission, no such folder."""


class UsageError(FactoryError):
    """Raised when a command's arguments do not fit together, or name something that does not exist."""

    exit_code: ClassVar[int] = 2


class ExportError(FactoryError):
    """Raised when a format does not fit a student, or its parity is out of bounds; nothing is left behind."""


class ServeError(FactoryError):
    """Raised when the server cannot start (a port, a keys file, a missing package) or an engine cannot answer."""


class RegistryError(FactoryError):
    """Raised for unknown or unsafe names, damaged files and incomplete versions."""


class GateError(RegistryError):
    """Raised when a version that failed its gates would get an alias."""

    exit_code: ClassVar[int] = 3  # its own, so that scripts can tell it from bad arguments


def printable(text: str) -> str:
    """``printable(key)``: what a file says, in one line for a terminal. Control characters are escaped, as in ``\\x1b``."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _bounded_line(text: str) -> str:
    line = printable(text)
    return line if len(line) <= MAX_LINE else line[: MAX_LINE - 4] + " ..."


def in_one_line(error: BaseException) -> str:
    """``in_one_line(error)``: another library's message, for the end of our own line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
