"""A Hub on the loopback: answers as the real one does, and misbehaves on demand."""

from __future__ import annotations

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40
API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^?]+))?(?:\?.*)?")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)")


class Hub:
    """What the server has, how it behaves, and what it was asked."""

    def __init__(self):
        self.repos = {}  # "org/name" -> {file: bytes or (size, head)}
        self.commit = COMMIT
        self.gated = set()
        self.private = {}  # "org/name" -> token
        self.ranges = True
        self.failures = []  # statuses to answer before behaving
        self.cut_short = False
        self.lying_range = False
        self.compress = False
        self.redirect_to = None  # another host of the same server
        self.api_answer = None
        self.requests = []
        self.sent = 0
        self.url = ""

    def __getitem__(self, repo):
        return self.repos.setdefault(repo, {})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    @property
    def hub(self):
        return self.server.hub

    def do_GET(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.hub.requests.append((self.path, self.headers.get("Range"), token))
        if self.hub.failures:
            self.answer(self.hub.failures.pop(0), b"busy")
        elif self.path.startswith("/cdn"):
            self.send_file(self.path.removeprefix("/cdn"), token)
        elif match := API.fullmatch(self.path):
            self.send_info(match[1], match[2] or "main", token)
        elif self.hub.redirect_to:
            self.answer(302, b"", Location=f"{self.hub.redirect_to}/cdn{self.path}")
        else:
            self.send_file(self.path, token)

    def do_HEAD(self):
        self.answer(404, b"")

    def send_info(self, repo, revision, token):
        if self.hub.api_answer is not None:
            self.answer(200, self.hub.api_answer)
        elif repo not in self.hub.repos or self.hub.private.get(repo, token) != token:
            self.answer(401, b"{}", **{"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", self.hub.commit):
            self.answer(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})
        else:
            files = [{"rfilename": name} for name in self.hub[repo]]
            info = {"id": repo, "sha": self.hub.commit, "siblings": files}
            self.answer(200, json.dumps(info).encode())

    def send_file(self, path, token):
        match = FILE.fullmatch(path)
        data = self.hub[match[1]].get(match[3]) if match else None
        if data is None:
            self.answer(404, b"", **{"X-Error-Code": "EntryNotFound"})
            return
        if match[1] in self.hub.gated:
            self.answer(403, b"", **{"X-Error-Code": "GatedRepo"})
            return
        size, head = data if isinstance(data, tuple) else (len(data), data)
        ask = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        extra = {"Content-Encoding": "gzip"} if self.hub.compress else {}
        if not ask or not self.hub.ranges:
            self.answer(200, head, length=size, **extra)
            return
        begin, end = int(ask[1]), min(int(ask[2]), size - 1)
        if begin >= size:
            self.answer(416, b"")
            return
        body = head[begin : end + 1].ljust(end + 1 - begin, b"\0")
        shown = begin + 7 if self.hub.lying_range else begin
        extra["Content-Range"] = f"bytes {shown}-{end}/{size}"
        self.answer(206, body, **extra)

    def answer(self, status, body, *, length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.hub.cut_short:
            body = body[: len(body) // 2]
            self.close_connection = True
        try:
            self.wfile.write(body)
            missing = (length or 0) - len(body)
            while missing > 0 and not self.hub.cut_short:
                block = bytes(min(missing, 2**16))
                self.wfile.write(block)
                missing -= len(block)
                self.hub.sent += len(block)
        except OSError:
            self.close_connection = True
        self.hub.sent += len(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
        pass


@contextmanager
def serving():
    """Yield a Hub that answers at its `url`."""
    hub = Hub()
    server = Server(("127.0.0.1", 0), Handler)
    server.hub = hub
    hub.port = server.server_address[1]
    hub.url = f"http://127.0.0.1:{hub.port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
