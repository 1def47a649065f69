"""Every error the factory raises on purpose. One line each: what failed, the value, what exists, what to do.

FactoryError
├── SpecError            a YAML in domains/ is wrong
├── ReferenceError       a model reference cannot be resolved, or its checksum does not match
├── DataError            a source, a data set or the router cannot be built
├── TrainingError        teacher and student do not fit, or a training run cannot go on
└── RegistryError        an unknown name, a bad name, a damaged or half-made version
"""


class FactoryError(Exception):
    """``except FactoryError`` catches every error with a one-line message meant for the user."""


class SpecError(FactoryError):
    """Raised with all mistakes of all files, one a line."""


class ReferenceError(FactoryError):
    """Raised when a ``hub:``, ``pypi:`` or ``path:`` reference cannot become a checked local folder."""


class DataError(FactoryError):
    """Raised when a source is missing, empty or malformed, or a data set has nothing left."""


class TrainingError(FactoryError):
    """Raised when a teacher and a student do not fit, or training cannot start or go on."""


class RegistryError(FactoryError):
    """Raised for unknown or unsafe names, damaged files and versions that are not whole."""


def in_one_line(error: BaseException) -> str:
    """``in_one_line(error)``: what another library said, for the end of our own line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
