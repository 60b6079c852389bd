"""Fetches a model's files over HTTPS with the standard library, so that a broken line costs only
what was not yet there.

Every file goes to `NAME.part` and continues there by a Range request after any failure; it gets
its name when its size, and its sha256 where the server tells it, are right. Files that are whole
already are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any, Callable, List, Optional

from minigpt.errors import CheckpointError, storage_error
from minigpt.files import fsync, require_space

_BLOCK = 1 << 20
_TRIES = 6
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_OPTIONAL = ("vocab.json", "merges.txt")

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Hub:
    """Where files come from: `endpoint`/`repo`/resolve/`revision`/FILE, with a token if there is
    one.
    """

    repo: str
    revision: str = "main"
    subfolder: str = ""
    endpoint: str = ""
    token: str = ""
    wait: float = 1.0  # seconds before the second try; doubles each time

    @classmethod
    def from_environment(cls, repo: str, revision: str, subfolder: str = "") -> Hub:
        """HF_ENDPOINT and HF_TOKEN, as people know them."""
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        return cls(repo, revision, subfolder, endpoint, os.environ.get("HF_TOKEN", ""))

    def url(self, name: str) -> str:
        path = "%s/%s" % (self.subfolder, name) if self.subfolder else name
        return "%s/%s/resolve/%s/%s" % (
            self.endpoint, self.repo, urllib.parse.quote(self.revision, ""),
            urllib.parse.quote(path),
        )  # fmt: skip


def download(hub: Hub, directory: Path, progress: Optional[Progress] = None) -> List[Path]:
    """Config, vocabulary and weights of `hub` into `directory`; CheckpointError says what stopped
    it.
    """
    require_https(hub.endpoint)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        files = [fetch(hub, "config.json", directory, progress)]
        files += [p for p in (_maybe(hub, n, directory, progress) for n in _OPTIONAL) if p]
        names = _weight_names(hub, directory, progress)
        return files + [fetch(hub, name, directory, progress) for name in names]
    except OSError as error:
        raise storage_error(error, directory) from error


def _weight_names(hub: Hub, directory: Path, progress: Optional[Progress]) -> List[str]:
    """The weight files: an index's shards or a single file, safetensors before pickles."""
    for single, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        path = _maybe(hub, index, directory, progress)
        if path is not None:
            return _shards(path)
        if head(hub, single) is not None:
            return [single]
    raise CheckpointError("%s has no weights that can be read" % hub.repo, "check the name")


def _shards(index: Path) -> List[str]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        names = []
    if not names or any(Path(str(n)).name != n or n in (".", "..") for n in names):
        raise CheckpointError("%s lists no proper file names" % index, "do not trust this source")
    return names


def _maybe(hub: Hub, name: str, directory: Path, progress: Optional[Progress]) -> Optional[Path]:
    return None if head(hub, name) is None else fetch(hub, name, directory, progress)


@dataclass(frozen=True)
class Remote:
    """What the server says of a file: its size and, where it does, its sha256."""

    size: Optional[int]
    sha256: str


def head(hub: Hub, name: str) -> Optional[Remote]:
    """Asks for a file without fetching it; None when the server has none of that name."""
    try:
        with _again(hub, name, lambda: _open(hub, name, method="HEAD")) as answer:
            return _remote(answer.headers)
    except _Missing:
        return None


def _remote(headers: Message) -> Remote:
    """Large files are named by their sha256, in an ETag that redirects keep by another name."""
    tag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "").strip('W/"')
    size = headers.get("X-Linked-Size") or headers.get("Content-Length")
    digest = tag if len(tag) == 64 and set(tag) <= set("0123456789abcdef") else ""
    return Remote(int(size) if size and size.isdigit() else None, digest)


def fetch(hub: Hub, name: str, directory: Path, progress: Optional[Progress] = None) -> Path:
    """The file `name` in `directory`, whole."""
    target, part = directory / name, directory / (name + ".part")
    remote = head(hub, name)
    if remote is None:
        raise CheckpointError("%s has no %s" % (hub.repo, name), "check the name and --revision")
    if target.exists() and remote.size in (None, target.stat().st_size):
        return target
    if remote.size is not None:
        require_space(directory, remote.size - (part.stat().st_size if part.exists() else 0))
    for attempt in range(2):
        _again(hub, name, lambda: _continue(hub, name, part, remote, progress))
        if not remote.sha256 or _sha256(part) == remote.sha256:
            break
        part.unlink()  # perhaps the rest of an older file: once more from the start
        if attempt:
            raise CheckpointError(
                "%s arrived, and is not what the server says it is (sha256)" % hub.url(name),
                "try again, or another endpoint by HF_ENDPOINT",
            )
    fsync(part)
    os.replace(str(part), str(target))
    return target


def _continue(
    hub: Hub, name: str, part: Path, remote: Remote, progress: Optional[Progress]
) -> None:
    """Appends what is missing of a file; raises ConnectionError when the line breaks before its
    end.
    """
    have = part.stat().st_size if part.exists() else 0
    if remote.size is not None and have > remote.size:
        part.unlink()
        have = 0
    if remote.size is not None and have == remote.size and part.exists():
        return
    with _open(hub, name, start=have) as answer:
        resumed = getattr(answer, "status", 200) == 206
        with part.open("ab" if resumed else "wb") as file:
            _copy(answer, file, progress)
    if remote.size is not None and part.stat().st_size != remote.size:
        raise ConnectionError("%d of %d bytes" % (part.stat().st_size, remote.size))


def _copy(answer: IO[bytes], file: IO[bytes], progress: Optional[Progress]) -> None:
    while True:
        block = answer.read(_BLOCK)
        if not block:
            return
        file.write(block)
        if progress is not None:
            progress(len(block))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


class _Missing(Exception):
    """The server has no such file."""


def _again(hub: Hub, name: str, action: Callable[[], Any]) -> Any:
    """`action`, tried again after every failure that may pass, a little later each time."""
    wait = hub.wait
    for left in reversed(range(_TRIES)):
        try:
            return action()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise _Missing(name) from None
            if error.code in (401, 403):
                raise CheckpointError(
                    "%s answers %d: not allowed" % (hub.url(name), error.code),
                    "set HF_TOKEN to a token that may read %s" % hub.repo,
                ) from None
            if (error.code not in (408, 429) and error.code < 500) or not left:
                raise _unreachable(hub, name, error) from None
            wait = max(wait, _retry_after(error.headers))
        except (ConnectionError, TimeoutError, urllib.error.URLError, EOFError) as error:
            if not left or (_nobody_there(error) and left < _TRIES - 1):
                raise _unreachable(hub, name, error) from None
        except OSError as error:
            raise storage_error(error, name) from error
        time.sleep(wait)
        wait *= 2
    raise AssertionError("the last try returns or raises")


def _nobody_there(error: Exception) -> bool:
    """No such host, or nobody listening: on a machine without a network, waiting does not help."""
    reason = getattr(error, "reason", error)
    return isinstance(reason, (socket.gaierror, ConnectionRefusedError))


def _retry_after(headers: Optional[Message]) -> float:
    value = headers.get("Retry-After", "") if headers is not None else ""
    return min(60.0, float(value)) if value.isdigit() else 0.0


def _unreachable(hub: Hub, name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        "%s cannot be fetched: %s" % (hub.url(name), error),
        "run the same command again to go on where it stopped",
    )


def require_https(url: str) -> None:
    """CheckpointError for an address that is neither https nor this machine's own."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise CheckpointError("%s is not https" % url, "use an https endpoint")


class _CarefulRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only, and gives the token to no other host."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Optional[urllib.request.Request]:
        require_https(newurl)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            request.method = req.get_method()
            if urllib.parse.urlsplit(newurl).netloc != urllib.parse.urlsplit(req.full_url).netloc:
                request.headers.pop("Authorization", None)
        return request


_opener = urllib.request.build_opener(_CarefulRedirects)


def _open(hub: Hub, name: str, start: int = 0, method: str = "GET") -> Any:
    request = urllib.request.Request(hub.url(name), method=method)
    if hub.token:
        request.add_header("Authorization", "Bearer " + hub.token)
    if start:
        request.add_header("Range", "bytes=%d-" % start)
    return _opener.open(request, timeout=60)
