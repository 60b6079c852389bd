"""The downloader against a real server on loopback that does everything a bad line and a bad
server do.
"""

import hashlib
import http.server
import json
import threading
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from safetensors.torch import load_file, save

from minigpt.__main__ import convert as convert_command
from minigpt.base.errors import MinigptError
from minigpt.checkpoint.model_files import load_model
from minigpt.data.tokenizer import load_tokenizer
from minigpt.hf import download as download_module
from minigpt.hf.download import Hub, download, fetch
from minigpt.hf.export import export
from minigpt.model.gpt import GPTConfig
from tests.helpers.runs import records, train
from tests.helpers.tuning import base

WEIGHTS = bytes(range(256)) * 4000
FILES = {
    "config.json": b'{"model_type": "gpt2"}',
    "vocab.json": b"{}",
    "merges.txt": b"#version: 0.2\n",
    "pytorch_model.bin": WEIGHTS,
}


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; what it does wrong, and how often, is set by the test."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(FILES)
        self.revisions = {}  # those that have files of their own
        self.named_by = "sha256"  # or "git", or None for a server that gives no digest
        self.elsewhere = None  # another server, which has the files
        self.asked = []
        self.cut_after, self.cuts = None, 0  # bytes sent before hanging up, and how many times
        self.fail, self.failures = None, 0  # a status, and how many times
        self.wrong_sha = self.no_range = False
        self.redirect, self.lie = None, 0  # bytes by which the announced size is wrong


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        server, name = self.server, self.path.rpartition("/")[2]
        server.asked.append((self.command, self.path, self.headers.get("Range"),
                             self.headers.get("Authorization")))  # fmt: skip
        if server.failures and body:
            server.failures -= 1
            return self.only(server.fail, {"Retry-After": "0"})
        if server.redirect and body:
            return self.only(302, {"Location": server.redirect})
        revision = self.path.split("/")[-2]
        files = server.revisions.get(revision, server.files)
        if name not in files:
            return self.only(404)
        if server.elsewhere:
            place = "http://127.0.0.1:%d%s" % (server.elsewhere.server_address[1], self.path)
            return self.only(302, {"Location": place, **self.digests(files[name])})
        return self.send(files[name], body)

    def digests(self, data):
        server = self.server
        if server.named_by is None:
            return {}
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        if server.named_by == "git":
            return {"ETag": 'W/"%s"' % ("0" * 40 if server.wrong_sha else git)}
        digest = "0" * 64 if server.wrong_sha else hashlib.sha256(data).hexdigest()
        size = str(len(data) + server.lie)
        return {"X-Linked-Etag": '"%s"' % digest, "X-Linked-Size": size}

    def only(self, status, headers=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, data, body):
        start = 0
        if self.headers.get("Range") and not self.server.no_range:
            start = int(self.headers["Range"][len("bytes=") : -1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        for key, value in self.digests(data).items():
            self.send_header(key, value)
        self.end_headers()
        if not body:
            return
        part = data[start:]
        if self.server.cuts and len(part) > 1000:
            self.server.cuts -= 1
            part = part[: self.server.cut_after]
            self.close_connection = True
        self.wfile.write(part)


def hub_at(server):
    return "http://127.0.0.1:%d" % server.server_address[1]


@pytest.fixture()
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture()
def hub(server):
    return Hub("someone/model", endpoint=hub_at(server), token="secret", wait=0.001)


def test_everything_arrives(server, hub, tmp_path):
    files = download(hub, tmp_path)
    assert {path.name: path.read_bytes() for path in files} == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    assert server.asked[0][1] == "/someone/model/resolve/main/config.json"
    assert all(token == "Bearer secret" for *_, token in server.asked)


def test_a_vocabulary_in_another_form_is_fetched_too(server, hub, tmp_path):
    del server.files["vocab.json"]
    server.files.update({"tokenizer.json": b"{}", "tokenizer_config.json": b"{}"})
    assert {path.name for path in download(hub, tmp_path)} == set(server.files)


def test_shards_by_their_index(server, hub, tmp_path):
    del server.files["pytorch_model.bin"]
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    server.files.update(dict.fromkeys(names, WEIGHTS))
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    server.files["model.safetensors.index.json"] = json.dumps(index).encode()
    found = {path.name for path in download(hub, tmp_path)}
    assert set(names) <= found


def test_a_cut_line_is_continued_where_it_broke(server, hub, tmp_path):
    server.cut_after, server.cuts = 300_000, 2
    download(hub, tmp_path)
    assert (tmp_path / "pytorch_model.bin").read_bytes() == WEIGHTS
    ranges = [r for method, path, r, _ in server.asked if method == "GET" and r]
    assert ranges == ["bytes=300000-", "bytes=600000-"]


def test_a_server_without_ranges_starts_again(server, hub, tmp_path):
    server.cut_after, server.cuts, server.no_range = 300_000, 1, True
    download(hub, tmp_path)
    assert (tmp_path / "pytorch_model.bin").read_bytes() == WEIGHTS


def test_what_is_whole_is_kept_and_what_was_begun_goes_on(server, hub, tmp_path):
    (tmp_path / "pytorch_model.bin.part").write_bytes(WEIGHTS[:1000])
    download(hub, tmp_path)
    gets = [path for method, path, *_ in server.asked if method == "GET"]
    download(hub, tmp_path)
    again = [path for method, path, *_ in server.asked if method == "GET"]
    assert gets == again and (tmp_path / "pytorch_model.bin").read_bytes() == WEIGHTS


def test_a_part_of_an_older_file_is_noticed_and_fetched_again(server, hub, tmp_path):
    (tmp_path / "pytorch_model.bin.part").write_bytes(b"x" * 1000)
    download(hub, tmp_path)
    assert (tmp_path / "pytorch_model.bin").read_bytes() == WEIGHTS


def gets(server):
    return [path for method, path, *_ in server.asked if method == "GET"]


@pytest.mark.parametrize("named_by", ["sha256", "git"])
def test_a_file_of_the_same_size_that_is_another_is_fetched_again(server, hub, tmp_path, named_by):
    server.named_by = named_by
    (tmp_path / "vocab.json").write_bytes(b"[]")
    (tmp_path / "pytorch_model.bin").write_bytes(WEIGHTS[::-1])
    for name in ("vocab.json", "pytorch_model.bin"):
        assert fetch(hub, name, tmp_path).read_bytes() == FILES[name]
    assert len(gets(server)) == 2
    for name in ("vocab.json", "pytorch_model.bin"):
        assert fetch(hub, name, tmp_path).read_bytes() == FILES[name]
    assert len(gets(server)) == 2


def test_without_a_digest_the_size_decides(server, hub, tmp_path):
    server.named_by = None
    (tmp_path / "vocab.json").write_bytes(b"[]")
    (tmp_path / "config.json").write_bytes(b"{}")
    assert fetch(hub, "vocab.json", tmp_path).read_bytes() == b"[]"
    assert fetch(hub, "config.json", tmp_path).read_bytes() == FILES["config.json"]


@pytest.mark.parametrize("named_by", ["sha256", None])
def test_the_digest_is_the_hubs_where_the_file_is_elsewhere(server, hub, tmp_path, named_by):
    """The hub names a large file and sends on to a store, whose ETag is no sha256 of it."""
    with Server() as store:
        threading.Thread(target=store.serve_forever, daemon=True).start()
        server.elsewhere, server.named_by = store, named_by
        store.named_by, store.wrong_sha = "git", True
        (tmp_path / "pytorch_model.bin").write_bytes(WEIGHTS[::-1])
        found = fetch(hub, "pytorch_model.bin", tmp_path).read_bytes()
        assert found == (WEIGHTS if named_by else WEIGHTS[::-1])
        assert fetch(hub, "vocab.json", tmp_path).read_bytes() == FILES["vocab.json"]
        store.shutdown()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failures_that_pass_are_tried_again(server, hub, tmp_path, status):
    server.fail, server.failures = status, 2
    download(hub, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == FILES["config.json"]


@pytest.mark.parametrize(
    "status, words", [(503, "cannot be fetched"), (401, "set HF_TOKEN"), (403, "set HF_TOKEN")]
)
def test_failures_that_stay_are_one_sentence(server, hub, tmp_path, status, words):
    server.fail, server.failures = status, 99
    with pytest.raises(MinigptError) as caught:
        download(hub, tmp_path / "downloads" / "name")
    assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_repository_is_one_sentence_and_leaves_nothing(server, hub, tmp_path):
    server.files.clear()
    with pytest.raises(MinigptError, match=r"has no config\.json"):
        download(hub, tmp_path / "downloads" / "name")
    assert not list(tmp_path.iterdir())


def test_an_empty_file_arrives(server, hub, tmp_path):
    server.files["merges.txt"] = b""
    assert fetch(hub, "merges.txt", tmp_path / "new").read_bytes() == b""


@pytest.mark.parametrize("named_by", ["sha256", "git"])
def test_a_file_that_is_not_what_it_claims_is_refused(server, hub, tmp_path, named_by):
    server.wrong_sha, server.named_by = True, named_by
    with pytest.raises(MinigptError, match="is not what the server says"):
        fetch(hub, "pytorch_model.bin", tmp_path)
    assert not (tmp_path / "pytorch_model.bin").exists()


def test_a_line_that_always_breaks_keeps_what_came(server, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "_TRIES", 2)
    server.cut_after, server.cuts = 1000, 99
    with pytest.raises(MinigptError, match="run the same command again"):
        download(hub, tmp_path)
    assert (tmp_path / "pytorch_model.bin.part").stat().st_size == 2000


@pytest.mark.parametrize("lie", [100, -100])
def test_a_server_that_lies_about_the_length_is_not_believed(server, hub, tmp_path, lie):
    server.lie = lie
    with pytest.raises(MinigptError, match="cannot be fetched"):
        fetch(hub, "pytorch_model.bin", tmp_path)
    assert not (tmp_path / "pytorch_model.bin").exists()


@pytest.mark.parametrize("target", ["http://example.com/x", "file:///etc/passwd", "ftp://x/y"])
def test_a_redirect_to_anything_but_https_is_refused(server, hub, tmp_path, target):
    server.redirect = target
    with pytest.raises(MinigptError) as caught:
        download(hub, tmp_path)
    assert "is not https" in str(caught.value) or "cannot be fetched" in str(caught.value)


def test_the_token_is_not_given_to_another_host(server, hub, tmp_path):
    with Server() as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        server.redirect = "http://127.0.0.1:%d/there/config.json" % other.server_address[1]
        fetch(hub, "config.json", tmp_path)
        assert [token for *_, token in other.asked] == [None]
        other.shutdown()


def test_an_index_that_names_files_elsewhere_is_refused(server, hub, tmp_path):
    index = {"weight_map": {"a": "../../evil.bin"}}
    server.files["model.safetensors.index.json"] = json.dumps(index).encode()
    with pytest.raises(MinigptError, match="does not name the weights' files"):
        download(hub, tmp_path / "in")
    assert not (tmp_path.parent / "evil.bin").exists()


def test_plain_http_is_refused(tmp_path):
    with pytest.raises(MinigptError, match="is not https"):
        download(Hub("a/b", endpoint="http://example.com"), tmp_path)


def test_the_environment_is_asked(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    monkeypatch.setenv("HF_TOKEN", "t")
    hub = Hub.from_environment("a/b", "v1", "sub")
    assert hub.url("x.bin") == "https://mirror.example/a/b/resolve/v1/sub/x.bin"
    assert hub.token == "t"


@pytest.mark.oracle
def test_training_fetches_and_converts_what_is_missing(server, tmp_path, monkeypatch):
    """train.py --init gpt2, where the server has a tiny one: downloaded, converted, trained on."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=32)
    transformers.GPT2LMHeadModel(config).save_pretrained(str(tmp_path / "hf"))
    load_tokenizer("gpt2").save(tmp_path / "hf")
    server.files = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
    monkeypatch.setenv("HF_ENDPOINT", hub_at(server))
    monkeypatch.chdir(tmp_path)
    done = train(tmp_path, "--init", "gpt2", "--steps", 2, "--block-size", 16, "--out", "run")
    assert "download http://127.0.0.1" in done.stdout and "about 497.8 MB" in done.stdout
    assert (tmp_path / "checkpoints" / "gpt2" / "manifest.json").exists()
    assert len(records(tmp_path / "run")) == 2


NAMES = {"main": "gpt2", "step1000": "gpt2@step1000", "refs/pr/3": "gpt2@refs%2Fpr%2F3",
         "..": "gpt2@..", "a b*:?": "gpt2@a%20b%2A%3A%3F"}  # fmt: skip


def test_each_revision_is_a_model_of_its_own(server, tmp_path, monkeypatch):
    """Three of equal sizes, one after the other and again: each time the one that was asked for,
    and nothing is fetched twice.
    """
    base(tmp_path / "ours", "gpt2", shape=GPTConfig(50257, 64, 1, 1, 8))
    export(tmp_path / "ours", tmp_path / "hf")
    files = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
    weights = load_file(str(tmp_path / "hf" / "model.safetensors"))
    for number, revision in enumerate(NAMES):
        made = save({name: tensor + number for name, tensor in weights.items()}, {"format": "pt"})
        served = {**files, "model.safetensors": made}
        server.revisions[quote(revision, "")] = served
    monkeypatch.setenv("HF_ENDPOINT", hub_at(server))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for again in range(2):
        for number, (revision, name) in enumerate(NAMES.items()):
            out = ["--out", "out%d" % number] if again else []
            convert_command(["gpt2", "--revision", revision, *out])
            model = load_model(out[1] if again else Path("checkpoints") / name)
            expected = weights["transformer.ln_f.bias"] + number
            assert torch.equal(dict(model.named_parameters())["final_norm.bias"], expected)
    assert len(gets(server)) == len({*gets(server)})
    assert {path.name for path in Path("downloads").iterdir()} == {*NAMES.values()}
    assert {path.name for path in Path("checkpoints").iterdir()} == {*NAMES.values()}
