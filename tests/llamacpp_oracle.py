"""llama.cpp itself as the judge: its dry run on devices that are servers on this machine.

`scripts/build_llamacpp.sh` builds the programs; MEMPLAN_LLAMA_FIT_PARAMS names the first of them.
`ggml-rpc-server` is a device that llama.cpp takes for a GPU. The script's patch gives it any size
(GGML_RPC_MEMORY) and, on request, a CUDA device's wish to do the work of large batches
(GGML_RPC_OFFLOAD).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

FIT_PARAMS = os.environ.get("MEMPLAN_LLAMA_FIT_PARAMS") or shutil.which("llama-fit-params")
"""Read here: tests run without our environment variables."""


def program(name="llama-fit-params"):
    """Return the path of one of llama.cpp's programs, or skip the test."""
    found = FIT_PARAMS and Path(FIT_PARAMS).with_name(name)
    if not found or not found.exists():
        pytest.skip(f"{name} is not built here (make llamacpp, MEMPLAN_LLAMA_FIT_PARAMS)")
    return str(found)


@contextlib.contextmanager
def devices(*sizes):
    """Run one server for each size in bytes; give their addresses, as --rpc takes them."""
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(_server(size)) for size in sizes]
        yield ",".join(f"127.0.0.1:{port}" for port in ports)


@contextlib.contextmanager
def _server(size):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [program("ggml-rpc-server"), "-H", "127.0.0.1", "-p", str(port), "-t", "1"],
        env={**os.environ, "GGML_RPC_MEMORY": str(size)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _wait(port, process):
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            raise RuntimeError(f"ggml-rpc-server ended with {process.returncode}")
        time.sleep(0.05)
    raise RuntimeError("ggml-rpc-server does not answer")


def dry_run(arguments, servers, *, like_cuda=False):
    """Return what llama.cpp would allocate: device -> (weights, cache, compute) in whole MiB."""
    first = ["--rpc", servers] if servers else []  # an override may name one of them
    options = ["--fit-print", "on", "--no-repack"]
    lines = _run([program(), *first, *arguments, *options], like_cuda=like_cuda).splitlines()
    rows = [line.split() for line in lines if len(line.split()) == 4]
    return {row[0]: tuple(int(word) for word in row[1:]) for row in rows if row[1].isdigit()}


def own_fit(arguments, servers, *, like_cuda=False):
    """Return the arguments that llama.cpp's own --fit chooses, with no margin."""
    command = [program(), "--rpc", servers, *arguments, "--no-repack", "-fitt", "0"]
    text = _run(command, like_cuda=like_cuda).strip().splitlines()[-1]
    return [word.strip('"') for word in text.split()]


def _run(command, *, like_cuda):
    env = {**os.environ, **({"GGML_RPC_OFFLOAD": "1"} if like_cuda else {})}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


__all__ = ["devices", "dry_run", "own_fit", "program"]
