"""Byte ranges of a file that lies on a server, and what a failed request means.

Requests go through huggingface_hub's own client: its proxies, certificates and token hold, and the
token is dropped when a redirect leaves the host.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from memplan.errors import BadModelError, MemplanError, ModelError, ModelNotFoundError

__all__ = ["HubRefusedError", "HubUnreachableError", "RemoteFile", "hub_errors", "retrying"]

T = TypeVar("T")

STEP_BYTES = 128 * 1024
"""Length of the first request; each further one is twice as long. Most shards' headers fit."""
MAX_STEP_BYTES = 8 * 1024**2
MAX_HEAD_BYTES = 256 * 1024**2
"""Longest beginning of a file that is ever read."""
TIMEOUT_S = 10.0
"""Seconds to connect, and seconds without a byte."""
TOTAL_S = 120.0
"""Seconds that one answer may take in all."""
RETRY_WAITS_S = (0.3, 1.0)
"""Seconds before the second and the third try."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_AGAIN = (408, 429, 500, 502, 503, 504)
_LOGIN = "hf auth login, or set HF_TOKEN; accept a gated model's terms on its page first"
_ONCE = "plan it once with a connection: after that the cache answers offline"


class HubUnreachableError(ModelNotFoundError):
    """The Hub cannot be reached, or is out of order: a cache may still answer."""


class HubRefusedError(ModelNotFoundError):
    """The Hub answers that there is no such thing, or that this user may not see it."""


class RemoteFile:
    """A file on a server, of which the beginning is read as far as it is asked for.

    It is a `Source` for the readers of headers; for one thread. Servers that ignore ranges are
    read from the start and left as soon as there is enough.
    """

    def __init__(self, url: str, where: str, headers: Mapping[str, str]) -> None:
        """Read the first 128 KiB.

        Args:
            url: where the file is; redirects are followed.
            where: its name, for messages.
            headers: user agent and, when there is one, the token.

        Raises HubUnreachableError, HubRefusedError and BadModelError.
        """
        self.size = 0
        """Bytes of the whole file."""
        self._url, self._where, self._headers = url, where, dict(headers)
        self._head = bytearray()
        self._step = STEP_BYTES
        self._grow(1)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes from an offset, fewer only at the end of the file. Raises ModelError."""
        end = min(offset + length, self.size)
        if end > len(self._head):
            self._grow(end)
        return bytes(self._head[offset:end])

    def head(self, length: int | None = None) -> bytes:
        """Return the first bytes, or all that was read, without a request."""
        return bytes(self._head[:length])

    def _grow(self, end: int) -> None:
        if end > MAX_HEAD_BYTES:
            raise BadModelError(
                f"{self._where} has a header of more than {MAX_HEAD_BYTES} bytes",
                hint="download the file and name it instead",
            )
        have = len(self._head)
        want = max(end, have + self._step) - have
        self._head += retrying(lambda: self._request(have, want), self._where)
        self._step = min(self._step * 2, MAX_STEP_BYTES)

    def _request(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, or all up to the end of the file."""
        from huggingface_hub.utils import get_session

        headers = {
            **self._headers,
            "Range": f"bytes={offset}-{offset + length - 1}",
            "Accept-Encoding": "identity",
        }
        with get_session().stream(
            "GET", self._url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True
        ) as response:
            if response.status_code == 416 and offset == 0:
                return b""  # an empty file has no first byte
            if not response.is_success:
                raise _of_answer(response, self._where)
            skip = self._check(response, offset)
            return self._collect(response, skip, min(length, self.size - offset))

    def _check(self, response: Any, offset: int) -> int:
        """Learn the file's size; return how many bytes come before the wanted ones."""
        if response.status_code != 206:
            text = response.headers.get("Content-Length", "")
            start, size = 0, int(text) if text.isdecimal() else -1
        else:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            start, size = (int(match[1]), int(match[3])) if match else (-1, -1)
        encoded = response.headers.get("Content-Encoding", "identity") != "identity"
        changed = offset and size != self.size
        if encoded or changed or size < 0 or start not in (0, offset):
            raise BadModelError(
                f"{self._where}: the server does not give the bytes that it was asked for",
                hint="check HF_ENDPOINT, or download the file",
            )
        self.size = size
        return offset - start

    @staticmethod
    def _collect(response: Any, skip: int, length: int) -> bytes:
        """Read until there is enough; leaving the `with` then closes the connection."""
        data = bytearray()
        deadline = time.monotonic() + TOTAL_S
        for chunk in response.iter_raw() if length else ():
            data += chunk[skip:]
            skip = max(0, skip - len(chunk))
            if len(data) >= length:
                break
            if time.monotonic() > deadline:
                raise TimeoutError
        if len(data) < length:
            raise _ShortError
        return bytes(data[:length])


class _ShortError(Exception):
    """The server closed the connection before it had sent everything."""


def retrying(call: Callable[[], T], what: str) -> T:
    """Call once and, where the Hub cannot be reached, twice more. Raises ModelError."""
    for wait in RETRY_WAITS_S:
        try:
            with hub_errors(what):
                return call()
        except HubUnreachableError as error:
            if type(error.__cause__).__name__ in ("OfflineModeIsEnabled", "ConnectError"):
                raise
            time.sleep(wait)
    with hub_errors(what):
        return call()


@contextlib.contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn what huggingface_hub and its HTTP client raise into a ModelError about `what`.

    The client's texts are left out: they can hold signed addresses.
    """
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # The client's library (requests, httpx, httpx2) changes with huggingface_hub's version.
    base = ("HTTPError", "RequestException")
    transport = next(cls for cls in HfHubHTTPError.__mro__[1:] if cls.__name__ in base)
    try:
        yield
    except MemplanError:
        raise
    except OfflineModeIsEnabled as error:
        raise HubUnreachableError(
            f"{what}: offline mode is on and it is not in the cache", hint=_ONCE
        ) from error
    except HfHubHTTPError as error:
        raise _of_answer(getattr(error, "response", None), what) from error
    except _ShortError as error:
        raise HubUnreachableError(f"{what}: the Hub's answer ended early", hint=_ONCE) from error
    except (transport, OSError) as error:
        raise HubUnreachableError(
            f"{what}: the Hub cannot be reached ({type(error).__name__})", hint=_ONCE
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadModelError(
            f"{what}: the answer is not one of a Hugging Face Hub ({type(error).__name__})",
            hint="check HF_ENDPOINT and the proxy settings",
        ) from error


def _of_answer(response: Any, what: str) -> ModelError:
    status = getattr(response, "status_code", 0)
    code = response.headers.get("X-Error-Code") if response is not None else None
    if status in _AGAIN or status > 500:
        return HubUnreachableError(f"{what}: the Hub answered {status}", hint=_ONCE)
    if code == "GatedRepo" or status == 403:
        return HubRefusedError(f"{what}: access is refused ({status})", hint=_LOGIN)
    if status == 401:
        return HubRefusedError(f"{what} is not on the Hub, or private", hint=_LOGIN)
    if code == "RevisionNotFound":
        return HubRefusedError(
            f"{what}: the repository has no such revision",
            hint="name a branch, a tag or a commit after the @",
        )
    if status == 404:
        return HubRefusedError(
            f"{what} is not on the Hub", hint="check the spelling: org/name[@revision]"
        )
    return HubRefusedError(f"{what}: the Hub answered {status}", hint="check HF_ENDPOINT")
