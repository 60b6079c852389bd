"""The downloader against a real server on loopback that does everything a bad line and a bad
server do.
"""

import hashlib
import http.server
import json
import threading

import pytest

from minigpt.data.tokenizer import load_tokenizer
from minigpt.errors import MinigptError
from minigpt.hf import download as download_module
from minigpt.hf.download import Hub, download, fetch
from tests.training.runs import records, train

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
        if name not in server.files:
            return self.only(404)
        return self.send(server.files[name], body)

    def only(self, status, headers=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, data, body):
        digest = hashlib.sha256(data).hexdigest()
        start = 0
        if self.headers.get("Range") and not self.server.no_range:
            start = int(self.headers["Range"][len("bytes=") : -1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("X-Linked-Size", str(len(data) + self.server.lie))
        self.send_header("X-Linked-Etag", '"%s"' % ("0" * 64 if self.server.wrong_sha else digest))
        self.end_headers()
        if not body:
            return
        part = data[start:]
        if self.server.cuts and len(part) > 1000:
            self.server.cuts -= 1
            part = part[: self.server.cut_after]
            self.close_connection = True
        self.wfile.write(part)


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
    endpoint = "http://127.0.0.1:%d" % server.server_address[1]
    return Hub("someone/model", endpoint=endpoint, token="secret", wait=0.001)


def test_everything_arrives(server, hub, tmp_path):
    files = download(hub, tmp_path)
    assert {path.name: path.read_bytes() for path in files} == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    assert server.asked[0][1] == "/someone/model/resolve/main/config.json"
    assert all(token == "Bearer secret" for *_, token in server.asked)


def test_a_vocabulary_in_another_form_is_fetched_too(server, hub, tmp_path):
    del server.files["vocab.json"]
    server.files.update(
        {"tokenizer.json": b"{}", "tokenizer_config.json": b"{}", "vocab.txt": b"a"}
    )
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
        download(hub, tmp_path)
    assert words in str(caught.value)
    assert not list(tmp_path.glob("*.bin"))


def test_a_missing_repository_is_one_sentence(server, hub, tmp_path):
    server.files.clear()
    with pytest.raises(MinigptError, match=r"has no config\.json"):
        download(hub, tmp_path)


def test_a_file_that_is_not_what_it_claims_is_refused(server, hub, tmp_path):
    server.wrong_sha = True
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
    with pytest.raises(MinigptError, match="no proper file names"):
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
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:%d" % server.server_address[1])
    monkeypatch.chdir(tmp_path)
    done = train(tmp_path, "--init", "gpt2", "--steps", 2, "--block-size", 16, "--out", "run")
    assert "download http://127.0.0.1" in done.stdout and "about 497.8 MB" in done.stdout
    assert (tmp_path / "checkpoints" / "gpt2" / "manifest.json").exists()
    assert len(records(tmp_path / "run")) == 2
