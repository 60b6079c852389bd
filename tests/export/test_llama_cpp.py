"""llama.cpp itself, as a server on this machine, runs the GGUF of an export."""

import json
from urllib.request import Request, urlopen

import pytest
import torch

from minigpt import load_model, load_tokenizer
from minigpt.data.template import TEMPLATES
from tests.helpers.exported import exported, to_gguf
from tests.parity.test_00_tokenizer import AWKWARD

pytestmark = [pytest.mark.oracle, pytest.mark.slow]
llama_cpp = pytest.importorskip("xllamacpp", reason="pip install -r requirements-export.txt")


def serve(model):
    """A function that asks a llama.cpp with this GGUF, exact where it can be."""
    kind, exact = llama_cpp.ggml_type.GGML_TYPE_F32, llama_cpp.CommonParams()
    exact.model.path = str(model)
    exact.n_ctx, exact.n_parallel, exact.warmup, exact.verbosity = 64, 1, False, -1
    exact.cache_type_k = exact.cache_type_v = kind
    exact.flash_attn_type = llama_cpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = llama_cpp.Server(exact)

    def ask(path, **body):
        words = json.dumps(body).encode()
        request = Request(server.listening_address + path, words, {"Content-Type": "text/json"})
        with urlopen(request, timeout=60) as answer:
            return json.load(answer)

    return ask


@pytest.mark.parametrize("activation, tied", [("gelu_tanh", True), ("gelu", False)])
def test_ids_chats_and_likelihoods(tmp_path, monkeypatch, activation, tied):
    exported(tmp_path, activation=activation, init_std=0.1, tied_head=tied)
    ask = serve(to_gguf(tmp_path, monkeypatch))
    tokenizer, model = load_tokenizer("gpt2"), load_model(tmp_path / "ours")
    for text in AWKWARD:
        ids = ask("/tokenize", content=text, parse_special=False)["tokens"]
        assert ids == tokenizer.encode(text), text

    said = [("user", "a"), ("assistant", "    b"), ("system", "s"), ("user", "c {{ 한글 }}")]
    messages = [{"role": role, "content": content} for role, content in said]
    template = TEMPLATES["instruct"]
    past = template.prompt("a") + "    b<|endoftext|>" + template.prompt("s\n\nc {{ 한글 }}")
    assert ask("/apply-template", messages=messages)["prompt"] == past

    ids = tokenizer.encode("def add(a, b):\n    return a + b\n")
    answer = ask("/completion", prompt=ids, n_predict=1, n_probs=50257, ignore_eos=True)
    found = torch.full((50257,), float("nan"))
    for one in answer["completion_probabilities"][0]["top_logprobs"]:
        found[one["id"]] = one["logprob"]
    expected = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
    difference = (found - expected).abs().max().item()
    print("llama.cpp, %s: %.1e nats" % (activation, difference))
    assert difference < 5e-3  # its table of the GELU is in 16 bits


def test_another_inner_width_does_not_load(tmp_path, monkeypatch, capfd):
    exported(tmp_path, n_inner=70)
    with pytest.raises(RuntimeError):
        serve(to_gguf(tmp_path, monkeypatch))
