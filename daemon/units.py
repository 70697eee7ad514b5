"""Service files: systemd system and user units, a launchd plist; written, marked, taken back."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape

from memplan.errors import DaemonError, UsageError

__all__ = ["MARKER", "Kind", "Unit", "install", "uninstall", "unit"]

Kind = Literal["system", "user", "launchd"]

MARKER = "Written by memplan daemon install"
"""A file without it is somebody else's, and is neither overwritten nor removed."""

_SYSTEM = """\
# {marker}. `memplan daemon install --system` writes it anew.
[Unit]
Description=memplan: samples the memory of this machine and its GPUs
After=local-fs.target

[Service]
Type=notify
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
Environment=MEMPLAN_DATABASE=/var/lib/memplan/memplan.db
# Members of the group memplan may ask it: their own processes in full, others added up.
Environment=MEMPLAN_GROUP=memplan
Restart=on-failure
RestartSec=2
RestartPreventExitStatus=2
WatchdogSec=60
# A database of an older version with millions of samples takes minutes to be moved over.
TimeoutStartSec=30min
TimeoutStopSec=10
User=memplan
Group=memplan
StateDirectory=memplan
StateDirectoryMode=0750
Nice=5
MemoryMax=256M
OOMScoreAdjust=-500
LimitNOFILE=65536
# PSS and job names of other users' processes need this; without it both are left out:
#   systemctl edit memplan, then AmbientCapabilities= and CapabilityBoundingSet=CAP_SYS_PTRACE
CapabilityBoundingSet=
AmbientCapabilities=
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
ProtectClock=yes
ProtectHostname=yes
ProtectControlGroups=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectKernelLogs=yes
PrivateTmp=yes
PrivateMounts=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
IPAddressDeny=any
IPAddressAllow=localhost
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
UMask=0077
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallFilter=setpriority sched_setaffinity prlimit64 setrlimit
SystemCallErrorNumber=EPERM
DevicePolicy=closed
DeviceAllow=char-nvidia rw
DeviceAllow=char-nvidia-uvm rw
DeviceAllow=char-nvidia-frontend rw
DeviceAllow=char-drm rw
DeviceAllow=/dev/kfd rw

[Install]
WantedBy=multi-user.target
"""

_USER = """\
# {marker}. `memplan daemon install --user` writes it anew.
[Unit]
Description=memplan: samples the memory of this machine and its GPUs

[Service]
Type=notify
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=2
RestartPreventExitStatus=2
WatchdogSec=60
# A database of an older version with millions of samples takes minutes to be moved over.
TimeoutStartSec=30min
TimeoutStopSec=10
Nice=5
# A user's manager may do little: what needs a namespace or drops capabilities ends in 218.
NoNewPrivileges=yes
RestrictSUIDSGID=yes

[Install]
WantedBy=default.target
"""

_LAUNCHD = """\
<?xml version="1.0" encoding="UTF-8"?>
<!-- {marker} -->
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key><string>org.memplan.daemon</string>
  <key>ProgramArguments</key>
  <array>
{arguments}
  </array>
  <key>RunAtLoad</key><true/>
  <key>KeepAlive</key><dict><key>SuccessfulExit</key><false/></dict>
  <key>Nice</key><integer>5</integer>
  <key>ProcessType</key><string>Background</string>
</dict>
</plist>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One service file."""

    path: Path
    """Where it belongs."""
    text: str
    """What is in it."""
    start: str
    """What to type to start it."""
    stop: str
    """What to type before it is removed."""


def unit(kind: Kind, *, root: Path = Path("/"), python: str = sys.executable) -> Unit:
    """Return a service file.

    Args:
        kind: "system" or "user" for systemd, "launchd" for macOS.
        root: where the file system begins.
        python: the interpreter that has memplan.
    """
    words = [python, "-m", "memplan", "daemon", "run"]
    if kind == "launchd":
        items = "\n".join(f"    <string>{escape(word)}</string>" for word in words)
        path = _home(root) / "Library/LaunchAgents/org.memplan.daemon.plist"
        text = _LAUNCHD.format(marker=MARKER, arguments=items)
        return Unit(
            path=path,
            text=text,
            start=f"launchctl load -w {path}",
            stop=f"launchctl unload -w {path}",
        )
    command = " ".join(_quoted(word) for word in words)
    if kind == "user":
        base = os.environ.get("XDG_CONFIG_HOME")
        folder = Path(base) if base else _home(root) / ".config"
        return Unit(
            path=folder / "systemd/user/memplan.service",
            text=_USER.format(marker=MARKER, command=command),
            start="systemctl --user daemon-reload && systemctl --user enable --now memplan",
            stop="systemctl --user disable --now memplan",
        )
    return Unit(
        path=root / "etc/systemd/system/memplan.service",
        text=_SYSTEM.format(marker=MARKER, command=command),
        start="useradd --system --user-group --no-create-home memplan; "
        "systemctl daemon-reload && systemctl enable --now memplan",
        stop="systemctl disable --now memplan",
    )


def _home(root: Path) -> Path:
    home = Path.home()
    return home if root == Path("/") else root / home.relative_to("/")


def _quoted(word: str) -> str:
    """Quote for systemd: % and $ have a meaning there, the rest is as in a shell."""
    return shlex.quote(word).replace("%", "%%").replace("$", "$$")


def install(wanted: Unit, *, force: bool = False) -> bool:
    """Write a service file; tell whether it was changed.

    Raises DaemonError when another file is in the way (unless `force`) or it cannot be written.
    """
    try:
        if wanted.path.is_symlink():
            raise DaemonError(
                f"{wanted.path} is a link: it is not ours", hint=f"ls -l {wanted.path}"
            )
        before = wanted.path.read_text(encoding="utf-8") if wanted.path.exists() else None
        if before == wanted.text:
            return False
        if before is not None and MARKER not in before and not force:
            raise DaemonError(
                f"{wanted.path} was not written by memplan",
                hint="memplan daemon install --force overwrites it",
            )
        wanted.path.parent.mkdir(parents=True, exist_ok=True)
        draft = wanted.path.with_name(f".{wanted.path.name}.new")
        draft.write_text(wanted.text, encoding="utf-8")
        draft.chmod(0o644)
        draft.replace(wanted.path)
    except OSError as error:
        raise DaemonError(
            f"cannot write {wanted.path}: {error.strerror}", hint="memplan daemon install --user"
        ) from error
    return True


def uninstall(wanted: Unit) -> None:
    """Remove a service file. Raises UsageError when there is none, DaemonError for another's."""
    try:
        text = wanted.path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"there is no {wanted.path}", hint="memplan daemon install") from error
    except OSError as error:
        raise DaemonError(f"cannot read {wanted.path}: {error.strerror}") from error
    if MARKER not in text:
        raise DaemonError(f"{wanted.path} was not written by memplan", hint=f"rm {wanted.path}")
    try:
        wanted.path.unlink()
    except OSError as error:
        raise DaemonError(f"cannot remove {wanted.path}: {error.strerror}") from error
