"""Fetches a model's files over HTTPS with the standard library, so that a broken line costs only
what was not yet there.

Every file goes to `NAME.part` and continues there by a Range request after any failure; it gets
its name when its size, and its digest where the server tells it, are right. A file that is there
is kept when the same is true of it, and fetched again otherwise.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
from http.client import HTTPException
from pathlib import Path
from typing import Any, Callable, List, NamedTuple, Optional
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from minigpt.base.errors import CheckpointError, storage_error
from minigpt.base.files import fsync, require_space
from minigpt.checkpoint.manifest import hexdigest
from minigpt.checkpoint.safetensors import shard_names
from minigpt.data.tokenizer import MERGES, VOCAB
from minigpt.hf.layout import AGAIN, WEIGHT_FILES
from minigpt.hf.vocabulary import FAST, SETTINGS

_TRIES = 6
_MAY_PASS = (ConnectionError, TimeoutError, socket.timeout, URLError, HTTPException)
_LINKED = "X-Linked-Etag"  # on the way to another place: the digest of what is there


class Hub(NamedTuple):
    """Where files come from: `endpoint`/`repo`/resolve/`revision`/FILE, perhaps with a token."""

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
        path = quote(f"{self.subfolder}/{name}" if self.subfolder else name)
        return f"{self.endpoint}/{self.repo}/resolve/{quote(self.revision, '')}/{path}"


def download(hub: Hub, directory: Path) -> List[Path]:
    """Config, vocabulary and weights into `directory`; CheckpointError says what stopped it."""

    def get(*names: str, needed: bool = True) -> List[Path]:
        found = (fetch(hub, name, directory, needed) for name in names)
        return [path for path in found if path is not None]

    _require_https(hub.endpoint)
    try:
        files = get("config.json") + get(VOCAB, MERGES, needed=False)
        if len(files) < 3:
            files += get(FAST, SETTINGS, needed=False)
        for single, index in WEIGHT_FILES:
            if get(index, needed=False):
                return files + get(*shard_names(directory / index, AGAIN))
            if get(single, needed=False):
                return [*files, directory / single]
    except OSError as error:
        raise storage_error(error, directory) from error
    raise CheckpointError(f"{hub.repo} has no weights that can be read", "check the name")


def fetch(hub: Hub, name: str, directory: Path, needed: bool = True) -> Optional[Path]:
    """The file `name` in `directory`, whole; None where there is none and it is not `needed`."""
    target, part = directory / name, directory / (name + ".part")
    remote = _again(hub, name, lambda: _head(hub, name))
    if remote is None and not needed:
        return None
    if remote is None:
        raise CheckpointError(f"{hub.repo} has no {name}", "check the name and --revision")
    if target.exists() and remote.is_in(target):
        return target
    require_space(directory, remote.size - _length(part))
    for _ in range(2):
        _again(hub, name, lambda: _continue(hub, name, part, remote.size))
        if remote.is_in(part):
            fsync(part)
            os.replace(str(part), str(target))
            return target
        part.write_bytes(b"")  # perhaps the rest of an older file: once more from the start
    what = f"{hub.url(name)} arrived, and is not what the server says it is (its digest differs)"
    raise CheckpointError(what, "try again, or another endpoint by HF_ENDPOINT")


class _Remote(NamedTuple):
    """What the server says of a file: its size, or -1, and its digest, or nothing."""

    size: int
    digest: str  # sha256 of a large file, what git calls a small one

    def is_in(self, path: Path) -> bool:
        """Whether `path` holds it, as far as can be told."""
        size = path.stat().st_size
        if self.size not in (-1, size):
            return False
        git = hashlib.sha1(b"blob %d\0" % size)
        own = git if len(self.digest) == git.digest_size * 2 else hashlib.sha256()
        return not self.digest or self.digest == hexdigest(path, own)


def _head(hub: Hub, name: str) -> Optional[_Remote]:
    """Asks for a file without fetching it; None when the server has none of that name."""
    try:
        with _open(hub, name, method="HEAD") as answer:
            headers = answer.headers
            if not answer.geturl().startswith(hub.endpoint):
                del headers["ETag"]  # where the hub has sent us, it may be anything
    except HTTPError as error:
        if error.code == 404:
            return None
        if error.code >= 400 or _LINKED not in error.headers:
            raise
        headers = error.headers
        del headers["Content-Length"]  # of the answer that only shows the way
    tag = (headers.get(_LINKED) or headers.get("ETag") or "").strip('W/"').lower()
    size = headers.get("X-Linked-Size") or headers.get("Content-Length") or ""
    known = re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", tag)
    return _Remote(int(size) if size.isdecimal() else -1, tag if known else "")


def _continue(hub: Hub, name: str, part: Path, size: int) -> None:
    """Appends what is missing of a file; ConnectionError when the line breaks before its end."""
    have = _length(part)
    if have == size > 0:
        return
    with _open(hub, name, start=have if have < size else 0) as answer:
        part.parent.mkdir(parents=True, exist_ok=True)  # nothing is made where nothing comes
        mode, total = "ab" if answer.status == 206 else "wb", None if size < 0 else size
        bar = tqdm(total=total, unit="B", unit_scale=True, desc=name, disable=None)
        with bar, part.open(mode) as file:
            bar.update(file.tell())
            for block in iter(lambda: answer.read(1 << 20), b""):
                bar.update(file.write(block))
            if size not in (-1, file.tell()):
                raise ConnectionError(f"{file.tell()} of {size} bytes")


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _again(hub: Hub, name: str, action: Callable[[], Any], attempt: int = 1) -> Any:
    """`action`, tried again after every failure that may pass, a little later each time. Where
    there is no such host, or nobody listens, there may be no network: that is tried once more only.
    """
    try:
        return action()
    except _MAY_PASS as error:
        code, nobody = getattr(error, "code", 500), getattr(error, "reason", error)
        tries = 2 if isinstance(nobody, (socket.gaierror, ConnectionRefusedError)) else _TRIES
        if attempt >= tries or (code < 500 and code not in (408, 429)):
            fix = "run the same command again to go on where it stopped"
            if code in (401, 403):
                fix = f"set HF_TOKEN to a token that may read {hub.repo}"
            raise CheckpointError(f"{hub.url(name)} cannot be fetched: {error}", fix) from None
        asked = getattr(error, "headers", {}).get("Retry-After", "")
        wait = min(60.0, float(asked)) if asked.isdecimal() else 0.0
    time.sleep(max(wait, hub.wait * 2 ** (attempt - 1)))
    return _again(hub, name, action, attempt + 1)


def _require_https(url: str) -> None:
    """CheckpointError for an address that is neither https nor this machine's own."""
    parts = urlsplit(url)
    own = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not (parts.scheme == "http" and own):
        raise CheckpointError(f"{url} is not https", "use an https endpoint")


class _CarefulRedirects(HTTPRedirectHandler):
    """Follows redirects to https only."""

    def redirect_request(self, req: Any, *answer: Any) -> Optional[Request]:
        *_, headers, url = answer
        _require_https(url)
        said = req.get_method() == "HEAD" and _LINKED in headers  # all that was asked for
        return None if said else super().redirect_request(req, *answer)


def _open(hub: Hub, name: str, start: int = 0, method: str = "GET") -> Any:
    request = Request(hub.url(name), method=method)
    if start:
        request.add_header("Range", f"bytes={start}-")
    if hub.token:  # and not to where this redirects
        request.add_unredirected_header("Authorization", f"Bearer {hub.token}")
    return build_opener(_CarefulRedirects).open(request, timeout=60)
