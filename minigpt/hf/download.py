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
import urllib.request
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import Any, Callable, List, NamedTuple, Optional
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit

from tqdm import tqdm

from minigpt.base.errors import CheckpointError, storage_error
from minigpt.base.files import fsync, require_space
from minigpt.checkpoint.manifest import hexdigest
from minigpt.data.tokenizer import MERGES, VOCAB
from minigpt.hf.layout import WEIGHT_FILES, shard_names
from minigpt.hf.vocabulary import FAST, FOREIGN, SETTINGS

_TRIES = 6
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

    def there(name: str) -> bool:
        return head(hub, name) is not None

    def get(*names: str) -> List[Path]:
        return [fetch(hub, name, directory) for name in names]

    require_https(hub.endpoint)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        files = get("config.json")
        files += get(*filter(there, (VOCAB, MERGES)))
        if len(files) < 3:  # the vocabulary is in another form, to be read or to be named
            files += get(*filter(there, (FAST, SETTINGS, *FOREIGN)))
        for single, index in WEIGHT_FILES:
            if there(index):
                get(index)
                return files + get(*shard_names(directory / index))
            if there(single):
                return files + get(single)
    except OSError as error:
        raise storage_error(error, directory) from error
    raise CheckpointError(f"{hub.repo} has no weights that can be read", "check the name")


class Remote(NamedTuple):
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


def head(hub: Hub, name: str) -> Optional[Remote]:
    """Asks for a file without fetching it; None when the server has none of that name."""

    def ask() -> Optional[Remote]:
        try:
            with _open(hub, name, method="HEAD") as answer:
                return _remote(answer.headers, _host(answer.geturl()) == _host(hub.endpoint))
        except HTTPError as error:
            if error.code == 404:
                return None
            if _LINKED in error.headers and error.code < 400:
                del error.headers["Content-Length"]  # of the answer that only shows the way
                return _remote(error.headers, own=False)
            raise

    return _again(hub, name, ask)


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _remote(headers: Message, own: bool) -> Remote:
    """What the hub's `own` answer says, or what it says of a file that it has elsewhere; an ETag
    of that other place may be anything.
    """
    tag = (headers.get(_LINKED) or (own and headers.get("ETag")) or "").strip('W/"').lower()
    size = headers.get("X-Linked-Size") or headers.get("Content-Length") or ""
    known = re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", tag)
    return Remote(int(size) if size.isdecimal() else -1, tag if known else "")


def fetch(hub: Hub, name: str, directory: Path) -> Path:
    """The file `name` in `directory`, whole."""
    target, part = directory / name, directory / (name + ".part")
    remote = head(hub, name)
    if remote is None:
        raise CheckpointError(f"{hub.repo} has no {name}", "check the name and --revision")
    if target.exists() and remote.is_in(target):
        return target
    part.touch()
    require_space(directory, remote.size - part.stat().st_size)
    for _ in range(2):
        _again(hub, name, lambda: _continue(hub, name, part, remote.size))
        if remote.is_in(part):
            fsync(part)
            os.replace(str(part), str(target))
            return target
        part.write_bytes(b"")  # perhaps the rest of an older file: once more from the start
    what = f"{hub.url(name)} arrived, and is not what the server says it is (its digest differs)"
    raise CheckpointError(what, "try again, or another endpoint by HF_ENDPOINT")


def _continue(hub: Hub, name: str, part: Path, size: int) -> None:
    """Appends what is missing of a file; ConnectionError when the line breaks before its end."""
    have = part.stat().st_size
    if have == size:
        return
    if have > size >= 0:
        have = 0  # it is of another file
    with _open(hub, name, start=have) as answer:
        have = have if answer.status == 206 else 0
        total = None if size < 0 else size
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=name, disable=None)
        with bar, part.open("ab" if have else "wb") as file:
            for block in iter(lambda: answer.read(1 << 20), b""):
                bar.update(file.write(block))
            if size not in (-1, file.tell()):
                raise ConnectionError(f"{file.tell()} of {size} bytes")


def _again(hub: Hub, name: str, action: Callable[[], Any]) -> Any:
    """`action`, tried again after every failure that may pass, a little later each time."""
    attempt, wait = 0, hub.wait
    while True:
        attempt += 1
        try:
            return action()
        except (ConnectionError, TimeoutError, socket.timeout, URLError, HTTPException) as error:
            if attempt >= _tries(error):
                fix = "run the same command again to go on where it stopped"
                if getattr(error, "code", None) in (401, 403):
                    fix = f"set HF_TOKEN to a token that may read {hub.repo}"
                what = f"{hub.url(name)} cannot be fetched: {error}"
                raise CheckpointError(what, fix) from None
            asked = getattr(error, "headers", {}).get("Retry-After", "")
            time.sleep(max(wait, min(60.0, float(asked)) if asked.isdecimal() else 0.0))
        wait *= 2


def _tries(error: Exception) -> int:
    """As many as make sense. Where there is no such host, or nobody listens, there may be no
    network at all, so that is tried once more only.
    """
    if isinstance(error, HTTPError):
        return _TRIES if error.code in (408, 429) or error.code >= 500 else 1
    reason = getattr(error, "reason", error)
    return 2 if isinstance(reason, (socket.gaierror, ConnectionRefusedError)) else _TRIES


def require_https(url: str) -> None:
    """CheckpointError for an address that is neither https nor this machine's own."""
    parts = urlsplit(url)
    own = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not (parts.scheme == "http" and own):
        raise CheckpointError(f"{url} is not https", "use an https endpoint")


class _CarefulRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only, and gives the token to no other host."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Optional[urllib.request.Request]:
        require_https(newurl)
        if req.get_method() == "HEAD" and _LINKED in headers:
            return None  # all that was asked for is said here
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            request.method = req.get_method()
            if _host(newurl) != _host(req.full_url):
                request.headers.pop("Authorization", None)
        return request


def _open(hub: Hub, name: str, start: int = 0, method: str = "GET") -> Any:
    headers = {"Authorization": f"Bearer {hub.token}"} if hub.token else {}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(hub.url(name), headers=headers, method=method)
    return urllib.request.build_opener(_CarefulRedirects).open(request, timeout=60)
