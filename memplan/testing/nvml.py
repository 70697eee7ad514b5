"""A fake libnvidia-ml: built by the system's compiler, told what to say by a file.

What it answers is written by `FakeNvml.write`; a process that has the library open sees the new
state at its next call. The calls are those that pynvml, gpustat and nvitop make (nvml.c lists
them). It changes nothing of a real driver and needs none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from memplan.errors import MissingDependencyError

__all__ = ["FakeGpu", "FakeNvml", "Fault", "NoCompilerError"]

_SOURCE = Path(__file__).with_name("nvml.c")
_LIBRARY = "libnvidia-ml.so.1"
_VARIABLE = "MEMPLAN_FAKE_NVML"
_SINGLE_BIT, _DOUBLE_BIT, _XID = 1, 2, 8


class NoCompilerError(MissingDependencyError):
    """There is no C compiler to build the library with."""


@dataclass(slots=True, kw_only=True)
class Fault:
    """What goes wrong in one function."""

    function: str
    """"nvmlDeviceGetMemoryInfo_v2" ..., "handle" for the handle of an index, "*" for all."""
    uuid: str = "*"
    """The device; "*" = every one."""
    error: int = 0
    """NVML's code that it answers: 3 not supported, 4 no permission, 15 lost, 999 unknown."""
    sleep_ms: int = 0
    """Milliseconds that it takes before it answers; an hour is as good as for ever."""
    grow: int = 0
    """A process list: a call that has too little room for it is told so many processes too few."""


@dataclass(slots=True, kw_only=True)
class FakeGpu:
    """One device, or one MIG device inside another. None = the field is not supported."""

    uuid: str
    """"GPU-..." or "MIG-..."."""
    name: str = "Fake_H100"
    """Product name, without blanks."""
    total: int | None = 80 * 2**30
    """Bytes of memory."""
    used: int | None = 0
    """Bytes in use."""
    reserved: int | None = 512 * 2**20
    """Bytes that driver and firmware keep."""
    fields: dict[str, int] = field(default_factory=dict)
    """More: util and membw (percent), power and limit (mW), temp (degrees C), sm and mem (MHz),
    tx and rx (KB/s), nvlink_tx and nvlink_rx (KiB), ecc_soft, ecc_hard, energy (mJ), mig (0, 1),
    gi and ci (MIG instance ids)."""
    compute: dict[int, int | None] = field(default_factory=dict)
    """Process id -> bytes; None = NVML's "not available"."""
    graphics: dict[int, int | None] = field(default_factory=dict)
    """The same for graphics contexts."""
    mig: list[FakeGpu] = field(default_factory=list)
    """Its MIG devices."""

    def lines(self, word: str = "gpu") -> list[str]:
        """Return its part of the state file."""
        values: dict[str, Any] = {
            "name": self.name,
            "total": self.total,
            "used": self.used,
            "reserved": self.reserved,
            **self.fields,
        }
        pairs = [f"{key}={value}" for key, value in values.items() if value is not None]
        found = [" ".join((word, self.uuid, *pairs))]
        for kind, table in (("compute", self.compute), ("graphics", self.graphics)):
            found += [f"proc {kind} {p} {'na' if b is None else b}" for p, b in table.items()]
        for part in self.mig:
            found += part.lines("mig")
        return found


class FakeNvml:
    """The library and its state."""

    def __init__(self, folder: Path) -> None:
        """Remember the folder; `build` compiles into it."""
        self.folder = folder
        """Where the library and its state file are."""
        self.gpus: list[FakeGpu] = []
        """The devices, in order."""
        self.faults: list[Fault] = []
        """What goes wrong."""
        self.init = 0
        """What nvmlInit answers: 9 driver not loaded, 12 no library, 18 mismatch, 999 unknown."""
        self.driver = "570.00"
        """The driver's version."""
        self.generation = 0
        """Raise it: the driver was loaded anew, and every handle is invalid."""
        self._events: list[str] = []

    @classmethod
    def build(cls, folder: Path) -> Self:
        """Compile the library into a folder, and write a state without devices.

        Raises NoCompilerError without a C compiler, or when it fails.
        """
        compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
        if compiler is None:
            raise NoCompilerError("there is no C compiler", hint="apt install gcc")
        folder.mkdir(parents=True, exist_ok=True)
        options = ["-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread"]
        done = subprocess.run(
            [compiler, *options, "-o", str(folder / _LIBRARY), str(_SOURCE)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise NoCompilerError(f"the fake NVML does not compile: {done.stderr.strip()}")
        made = cls(folder)
        made.write()
        return made

    @property
    def environment(self) -> dict[str, str]:
        """Variables for a process that is to use it; set before the process starts."""
        return {"LD_LIBRARY_PATH": str(self.folder), _VARIABLE: str(self.folder / "state")}

    def write(self) -> None:
        """Put the state in force, in one step."""
        lines = [
            f"driver {self.driver}",
            f"init {self.init}",
            f"generation {self.generation}",
            *(line for gpu in self.gpus for line in gpu.lines()),
            *(line for fault in self.faults for line in _fault(fault)),
            *self._events,
        ]
        draft = self.folder / "state.new"
        draft.write_text("\n".join(lines) + "\n", encoding="ascii")
        draft.replace(self.folder / "state")
        number = os.open(self.folder / "state.number", os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(number, os.urandom(8), 0)  # mapped by those that read: never made shorter
        finally:
            os.close(number)

    def xid(self, uuid: str, code: int) -> None:
        """Let a device report an XID error, and put it in force."""
        self._event(uuid, _XID, code)

    def ecc(self, uuid: str, *, double_bit: bool = True) -> None:
        """Let a device report an ECC error, and put it in force."""
        self._event(uuid, _DOUBLE_BIT if double_bit else _SINGLE_BIT, 0)

    def _event(self, uuid: str, kind: int, data: int) -> None:
        self._events.append(f"event {len(self._events) + 1} {uuid} {kind} {data}")
        self.write()


def _fault(fault: Fault) -> list[str]:
    what = {"error": fault.error, "sleep": fault.sleep_ms, "grow": fault.grow}
    return [f"fault {fault.function} {fault.uuid} {k}={v}" for k, v in what.items() if v]
