"""Makes the golden tensors: what transformers computes, kept for the machines where it cannot be
installed.

    python -m tests.golden.make_golden        (writes tests/golden/*.safetensors)

One file for each shape: the weights, some tokens, what leaves the embedding, every block and the
head, the loss, all gradients, and the weights after one step of torch's AdamW; in our names and
layout.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.helpers.reference import config_of, oracle, their_name, theirs_as_ours, tokens

HERE = Path(__file__).resolve().parent

# Small, so that the files are: (heads, width, inner, activation).
GOLDEN = {
    "exact_gelu": (2, 24, None, "gelu"),
    "tanh_gelu": (3, 21, 17, "gelu_tanh"),
}
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-4}


def golden(shape):
    """{name: tensor} of everything to be compared."""
    torch.manual_seed(7)
    theirs = oracle(shape)
    ids = tokens()
    before = in_our_layout(theirs, shape, lambda p: p.detach().clone())
    out = theirs(ids, labels=ids, output_hidden_states=True)
    out.loss.backward()
    gradients = in_our_layout(theirs, shape, lambda p: p.grad)
    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    torch.optim.AdamW(groups, **ADAMW).step()
    after = in_our_layout(theirs, shape, lambda p: p.detach())
    result = {"tokens": ids, "logits": out.logits.detach(), "loss": out.loss.detach()}
    for layer, hidden in enumerate(out.hidden_states[:-1]):
        result["stream.%d" % layer] = hidden.detach()
    for prefix, tensors in (("before", before), ("gradient", gradients), ("after", after)):
        result.update({"%s.%s" % (prefix, name): t for name, t in tensors.items()})
    return {name: tensor.contiguous() for name, tensor in result.items()}


def in_our_layout(theirs, shape, what):
    from minigpt.model.gpt import GPT

    parameters = dict(theirs.named_parameters())
    names = [name for name, _ in GPT(config_of(shape)).named_parameters()]
    return {n: theirs_as_ours(n, what(parameters[their_name(n)])) for n in names}


if __name__ == "__main__":
    for name, shape in GOLDEN.items():
        save_file(golden(shape), str(HERE / (name + ".safetensors")))
        print("wrote", HERE / (name + ".safetensors"))
