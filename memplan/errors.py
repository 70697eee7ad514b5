"""Everything that memplan raises on purpose.

    MemplanError                     exit 2
    +-- UsageError                   the command line asks for something that does not exist
    |   +-- UnitError                a size, dtype or number that cannot be read
    +-- ModelError                   a model that cannot be read
    |   +-- ModelNotFoundError       nothing there
    |   +-- BadModelError            there, but damaged or lying about its size
    |   +-- UnsupportedModelError    sound, but memplan has no rule for it yet
    +-- DeviceError                  a device that is not known or not there
    +-- StoreError                   the database
    |   +-- StoreFullError           it takes nothing at the moment: disk full, failing, read-only
    |   +-- StoreLockedError         another process is the writer
    |   +-- StoreMissingError        no database at that place yet
    |   +-- StoreVersionError        written by a newer memplan
    |   +-- StoreDamagedError        not a database, or a corrupt one
    |   +-- NotStoredError           no plan or run of that name
    +-- SchemaError                  JSON of another schema or major version
    +-- DaemonError                  the daemon is not there, or said no
    +-- MissingDependencyError       an optional package is needed

Each error says what is wrong in one line and, in `hint`, what to type. Only the command line
prints them; library code raises. A finding (a model that does not fit) is no error: exit 1.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BadModelError",
    "DaemonError",
    "DeviceError",
    "MemplanError",
    "MissingDependencyError",
    "ModelError",
    "ModelNotFoundError",
    "NotStoredError",
    "SchemaError",
    "StoreDamagedError",
    "StoreError",
    "StoreFullError",
    "StoreLockedError",
    "StoreMissingError",
    "StoreVersionError",
    "UnitError",
    "UnsupportedModelError",
    "UsageError",
]


class MemplanError(Exception):
    """Base of all; `try: ... except MemplanError as error: print(error, error.hint)`."""

    exit_code: ClassVar[int] = 2
    """What the process ends with when nobody catches it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        """One line that says what to do or type; empty when there is nothing useful to say."""


class UsageError(MemplanError, ValueError):
    """The command line or a call asks for something that does not exist or does not go together."""


class UnitError(UsageError):
    """A size, dtype or number cannot be read."""


class ModelError(MemplanError):
    """A model cannot be read."""


class ModelNotFoundError(ModelError):
    """There is nothing at the place named."""


class BadModelError(ModelError):
    """The files are damaged, truncated or contradict themselves."""


class UnsupportedModelError(ModelError):
    """The files are sound, but memplan has no rule for this architecture or layer kind yet."""


class DeviceError(MemplanError):
    """A device is not known, not present, or too small to describe."""


class StoreError(MemplanError):
    """The database cannot be used."""


class StoreFullError(StoreError):
    """The database takes nothing at the moment: disk full, failing or read-only, log too long."""


class StoreLockedError(StoreError):
    """Another process holds the writer's lock."""


class StoreMissingError(StoreError):
    """There is no database at that place yet."""


class StoreVersionError(StoreError):
    """The database was written by a newer memplan."""


class StoreDamagedError(StoreError):
    """The file is not a database, or a corrupt one."""


class NotStoredError(StoreError, KeyError):
    """No plan or run of that name is in the database."""

    def __str__(self) -> str:
        """Return the message itself (KeyError would show its repr)."""
        return str(self.args[0])


class SchemaError(MemplanError, ValueError):
    """JSON of another schema, of a newer major version, or with fields of the wrong type."""


class DaemonError(MemplanError):
    """The daemon is not running, or refused."""


class MissingDependencyError(MemplanError, ImportError):
    """An optional package is needed for this."""
