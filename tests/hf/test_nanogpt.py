"""nanoGPT's ckpt.pt: its model, written once more here as it is there, gives our logits."""

import os
import pickle
from dataclasses import asdict, dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minigpt.__main__ import convert as convert_command
from minigpt.base.errors import MinigptError
from minigpt.checkpoint.model_files import load_model
from minigpt.data.tokenizer import load_tokenizer
from tests.helpers.reference import assert_close


@dataclass
class Config:
    block_size: int = 24
    vocab_size: int = 65
    n_layer: int = 2
    n_head: int = 3
    n_embd: int = 12
    dropout: float = 0.0
    bias: bool = True


class LayerNorm(nn.Module):
    def __init__(self, size, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c_attn = nn.Linear(c.n_embd, 3 * c.n_embd, bias=c.bias)
        self.c_proj = nn.Linear(c.n_embd, c.n_embd, bias=c.bias)
        self.n_head = c.n_head
        mask = torch.tril(torch.ones(c.block_size, c.block_size))
        self.register_buffer("bias", mask.view(1, 1, c.block_size, c.block_size))

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
            for part in self.c_attn(x).split(C, dim=2)
        )
        att = (q @ k.transpose(-2, -1)) * (k.size(-1) ** -0.5)
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c_fc = nn.Linear(c.n_embd, 4 * c.n_embd, bias=c.bias)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(4 * c.n_embd, c.n_embd, bias=c.bias)

    def forward(self, x):
        return self.c_proj(self.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.ln_1, self.attn = LayerNorm(c.n_embd, c.bias), Attention(c)
        self.ln_2, self.mlp = LayerNorm(c.n_embd, c.bias), MLP(c)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(c.vocab_size, c.n_embd),
            "wpe": nn.Embedding(c.block_size, c.n_embd),
            "drop": nn.Dropout(c.dropout),
            "h": nn.ModuleList([Block(c) for _ in range(c.n_layer)]),
            "ln_f": LayerNorm(c.n_embd, c.bias),
        })  # fmt: skip
        self.lm_head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx):
        t = self.transformer
        x = t.wte(idx) + t.wpe(torch.arange(idx.size(1)))
        for block in t.h:
            x = block(x)
        return self.lm_head(t.ln_f(x))


def saved(path, prefix="", **shape):
    """A model, random everywhere, and what nanoGPT's train.py saves of it after a step."""
    torch.manual_seed(1)
    config = Config(**shape)
    model = NanoGPT(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95))
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": {prefix + name: tensor for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": asdict(config),
        "iter_num": 2000,
        "best_val_loss": torch.tensor(1.47),
        "config": {"out_dir": "out", "learning_rate": 6e-4, "compile": True, "dtype": "float16"},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, str(path))
    return model.eval()


def convert(path, out, *words):
    convert_command([str(path), "--from", "nanogpt", "--out", str(out), *words])
    return load_model(out)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
def test_its_logits(tmp_path, bias, prefix):
    theirs = saved(tmp_path / "ckpt.pt", prefix, bias=bias)
    ours = convert(tmp_path / "ckpt.pt", tmp_path / "ours", "--tokenizer", "none")
    assert ours.config.activation == "gelu" and ours.config.tied_head
    ids = torch.randint(0, 65, (2, 24))
    assert_close(ours(ids), theirs(ids))


@pytest.mark.parametrize("tokens", [50257, 50304])
def test_gpt2s_vocabulary_comes_with_a_model_of_as_many_tokens(tmp_path, tokens, capsys):
    saved(tmp_path / "out" / "ckpt.pt", vocab_size=tokens, bias=False)
    assert convert(tmp_path / "out" / "ckpt.pt", tmp_path / "ours").config.vocab_size == tokens
    assert load_tokenizer(tmp_path / "ours").fingerprint == load_tokenizer("gpt2").fingerprint
    assert "generate --checkpoint" in capsys.readouterr().out


def test_characters_are_refused_with_the_way_on(tmp_path, capsys):
    saved(tmp_path / "ckpt.pt")
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 65, "stoi": {}, "itos": {}}))
    with pytest.raises(MinigptError, match=r"characters in nanoGPT's meta\.pkl") as caught:
        convert(tmp_path / "ckpt.pt", tmp_path / "ours")
    assert "--tokenizer none" in caught.value.fix and not (tmp_path / "ours").exists()
    convert(tmp_path / "ckpt.pt", tmp_path / "ours", "--tokenizer", "none")
    assert "next     put the vocab.json" in capsys.readouterr().out
    with pytest.raises(MinigptError, match=r"put vocab\.json and merges\.txt there"):
        load_tokenizer(tmp_path / "ours")


class Call:
    def __reduce__(self):
        return os.system, ("touch ran",)


WRONG = {
    "a call": (lambda c: c["config"].update(x=Call()), "cannot be read"),
    "no model_args": (lambda c: c.pop("model_args"), "it has no model_args"),
    "no model": (lambda c: c.pop("model"), "has 1 tensors for 2 layers"),
    "text for a number": (lambda c: c["model_args"].update(n_layer="2"), "it has no model_args"),
    "a layer too many": (lambda c: c["model_args"].update(n_layer=3), "lacks transformer.h.2"),
    "nonsense": (lambda c: c["model_args"].update(n_head=0), "n_head"),
    "another tensor": (lambda c: c["model"].update(x=torch.ones(1)), "x is no tensor of a GPT-2"),
}


@pytest.mark.parametrize("spoil, words", WRONG.values(), ids=WRONG.keys())
def test_what_is_none_of_its_is_a_sentence(tmp_path, monkeypatch, spoil, words):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "ckpt.pt")
    checkpoint = torch.load(str(tmp_path / "ckpt.pt"))
    spoil(checkpoint)
    torch.save(checkpoint, str(tmp_path / "ckpt.pt"))
    with pytest.raises(MinigptError, match=words) as caught:
        convert(tmp_path / "ckpt.pt", tmp_path / "ours", "--tokenizer", "none")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]


def test_a_file_without_saying_what_it_is(tmp_path):
    saved(tmp_path / "ckpt.pt")
    with pytest.raises(MinigptError, match=r"ckpt\.pt is a file.*--from nanogpt"):
        convert_command([str(tmp_path / "ckpt.pt")])
    with pytest.raises(MinigptError, match="is no file"):
        convert_command([str(tmp_path), "--from", "nanogpt"])
    with pytest.raises(MinigptError, match="--from is 'nanogtp'; did you mean nanogpt"):
        convert_command([str(tmp_path), "--from", "nanogtp"])
