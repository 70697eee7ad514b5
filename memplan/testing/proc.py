"""A /proc made of plain files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["FakeProc"]


class FakeProc:
    """Processes as folders of files, in the kernel's own formats; sizes in KiB, as it writes them.

    Real: a folder that is held open goes on meaning the process after `remove`. Not real: files
    do not change by themselves.
    """

    def __init__(self, root: Path) -> None:
        """Begin with an empty folder."""
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        """The folder to give to whatever reads /proc."""

    def add(
        self,
        pid: int,
        parent: int = 1,
        *,
        rss: int = 0,
        hwm: int | None = None,
        anon: int | None = None,
        session: int = 1,
        state: str = "S",
        name: str = "python",
        pss: int | None = None,
        uid: int = 0,
        start: int = 0,
        cgroup: str | None = None,
        environ: dict[str, str] | None = None,
        command: tuple[str, ...] | None = None,
    ) -> None:
        """Write a process, or write it anew.

        Args:
            pid: process id.
            parent: its parent's.
            rss: resident memory, KiB.
            hwm: the highest so far; rss if not said.
            anon: the anonymous part of rss; all of it if not said.
            session: session id.
            state: the kernel's letter; "Z" has no memory.
            name: comm; may hold anything.
            pss: what smaps_rollup says; no such file if not said.
            uid: owner, as status tells it.
            start: start time in clock ticks since boot.
            cgroup: path of the version 2 group; no such file if not said.
            environ: environment; no such file if not said.
            command: command line; no such file if not said.
        """
        place = self.root / str(pid)
        place.mkdir(exist_ok=True)
        between = " ".join(["0"] * 13)  # flags ... itrealvalue: nobody reads them
        (place / "stat").write_text(
            f"{pid} ({name}) {state} {parent} {pid} {session} 0 -1 {between} {start} 0 0\n"
        )
        (place / "comm").write_text(name[:15] + "\n")
        anon = rss if anon is None else anon
        status = self._status(pid, parent, name=name, state=state, uid=uid)
        if state != "Z":
            status += _memory(rss, anon, rss if hwm is None else hwm)
        (place / "status").write_text("\n".join(status) + "\n")
        if pss is not None:
            (place / "smaps_rollup").write_text(
                f"5570-7ffd ---p 0 00:00 0 [rollup]\nRss: {rss} kB\nPss: {pss} kB\n"
                "Private_Clean: 1 kB\nPrivate_Dirty: 2 kB\nPrivate_Hugetlb: 0 kB\n"
            )
        if cgroup is not None:
            (place / "cgroup").write_text(f"0::{cgroup}\n")
        if environ is not None:
            (place / "environ").write_text("".join(f"{k}={v}\0" for k, v in environ.items()))
        if command is not None:
            (place / "cmdline").write_text("".join(f"{word}\0" for word in command))

    @staticmethod
    def _status(pid: int, parent: int, *, name: str, state: str, uid: int) -> list[str]:
        return [
            f"Name:\t{name}",
            f"State:\t{state}",
            f"Pid:\t{pid}",
            f"PPid:\t{parent}",
            f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}",
        ]

    def remove(self, pid: int) -> None:
        """Let a process end: who holds one of its files open reads nothing from it any more."""
        for file in (self.root / str(pid)).iterdir():
            os.truncate(file, 0)
        shutil.rmtree(self.root / str(pid))

    def write(self, name: str, text: str) -> None:
        """Write a file of the root, such as "meminfo", "vmstat" or "pressure/memory"."""
        place = self.root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def _memory(rss: int, anon: int, hwm: int) -> list[str]:
    return [
        f"VmHWM:\t{hwm:8d} kB",
        f"VmRSS:\t{rss:8d} kB",
        f"RssAnon:\t{anon:8d} kB",
        f"RssFile:\t{rss - anon:8d} kB",
        "RssShmem:\t       0 kB",
        "VmSwap:\t       0 kB",
    ]
