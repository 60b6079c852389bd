"""Mistakes that people really make, each made in one line of a copy of this project, and the rung
of the ladder that sees it.

    python docs/course/breaks.py --list
    python docs/course/breaks.py scale-by-d      the diff, what the rung compared, and what failed
    python docs/course/breaks.py --all           all of them, in about a minute

It works in a temporary directory and writes nothing into yours. A rung that stays green under its
break, and a break whose line is not there any more, end it with code 1.
"""

import argparse
import difflib
import gc
import importlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import List, NamedTuple, Tuple

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("minigpt", "tests", "setup.cfg", "pyproject.toml", "train.py")
WITHOUT = "pytest ended with %d, and no assertion failed"
GOLDEN = "tests/parity/test_golden_tensors.py"
# What the rungs import, but for what may be broken; forked, it is imported once for all of them.
IMPORTED = (
    "pytest", "torch._dynamo", "torch.utils.checkpoint", "safetensors.torch", "tiktoken",
    "hypothesis", "tyro", "transformers.models.gpt2.modeling_gpt2",
)  # fmt: skip


class Break(NamedTuple):
    """`old`, which is one line of `file`, becomes `new`; `rung` is the file of tests that fails."""

    name: str
    says: str
    file: str
    old: str
    new: str
    rung: str


_PATTERN = r'''GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+%s"'''

BREAKS = [
    Break(
        "blank-with-its-word", "a run of blanks takes the one that belongs to the next word",
        "minigpt/data/tokenizer.py",
        _PATTERN % r"|\s+(?!\S)|\s+",
        _PATTERN % r"|\s+",
        "tests/parity/test_00_tokenizer.py",
    ),
    Break(
        "no-positions", "the positions are forgotten: a text is a bag of words",
        "minigpt/model/gpt.py",
        "x = self.token_embedding(tokens) + self.position_embedding(positions)  # (B, T, C)",
        "x = self.token_embedding(tokens)  # (B, T, C)",
        "tests/parity/test_01_embedding.py",
    ),
    Break(
        "layer-norm-epsilon", "1e-6, as in some other libraries, in the place of 1e-5",
        "minigpt/model/config.py",
        "layer_norm_eps: float = 1e-5",
        "layer_norm_eps: float = 1e-6",
        "tests/parity/test_02_layer_norm.py",
    ),
    Break(
        "scale-by-d", "scores are divided by D and not by its root",
        "minigpt/model/config.py",
        "return self.attention_scale or 1.0 / math.sqrt(self.head_dim)",
        "return self.attention_scale or 1.0 / self.head_dim",
        "tests/parity/test_03_attention.py",
    ),
    Break(
        "mask-off-by-one", "each position sees the next one too, which it is to predict",
        "minigpt/model/cache.py",
        "return torch.ones(new, seen, dtype=torch.bool, device=device).tril(seen - new)",
        "return torch.ones(new, seen, dtype=torch.bool, device=device).tril(seen - new + 1)",
        "tests/parity/test_03_attention.py",
    ),
    Break(
        "softmax-over-queries", "the weights of the wrong axis add up to one",
        "minigpt/model/attention.py",
        "weights = torch.softmax(scores, -1)",
        "weights = torch.softmax(scores, -2)",
        "tests/parity/test_03_attention.py",
    ),
    Break(
        "heads-not-put-back", "reshaped without the transpose: positions and heads are mixed up",
        "minigpt/model/attention.py",
        "y = self.out(y.transpose(1, 2).reshape(B, T, C))  # heads side by side again",
        "y = self.out(y.reshape(B, T, C))  # heads side by side again",
        "tests/parity/test_03_attention.py",
    ),
    Break(
        "wrong-gelu", "the tanh approximation where the exact GELU is meant",
        "minigpt/model/config.py",
        'ACTIVATIONS = {"gelu": "none", "gelu_tanh": "tanh"}',
        'ACTIVATIONS = {"gelu": "tanh", "gelu_tanh": "tanh"}',
        "tests/parity/test_04_mlp.py",
    ),
    Break(
        "norm-behind", "the stream itself is normed, behind the addition, as in 2017",
        "minigpt/model/gpt.py",
        "x = x + self.attention(self.attention_norm(x), mask, cache, layer)",
        "x = self.attention_norm(x + self.attention(x, mask, cache, layer))",
        "tests/parity/test_05_block.py",
    ),
    Break(
        "no-final-norm", "the last LayerNorm, in front of the head, is forgotten",
        "minigpt/model/gpt.py",
        "x = self.final_norm(x)",
        "x = x",
        "tests/parity/test_06_logits.py",
    ),
    Break(
        "padding-learned", "positions without a target give a gradient all the same",
        "minigpt/training/fast_loss.py",
        "logits.mul_(supervised.unsqueeze(1))",
        "logits.mul_(1.0)",
        "tests/parity/test_07_loss.py",
    ),
    Break(
        "targets-not-shifted", "the target is the token itself: a perfect loss and nothing learned",
        "minigpt/data/windows.py",
        "tokens[row, :end], targets[row, :end] = text[:-1], text[1:]",
        "tokens[row, :end], targets[row, :end] = text[:-1], text[:-1]",
        "tests/data/test_loader.py",
    ),
    Break(
        "head-detached", "the head uses the embedding and does not teach it",
        "minigpt/model/gpt.py",
        "return F.linear(x, self.head_weight)",
        "return F.linear(x, self.head_weight.detach())",
        "tests/parity/test_08_gradients.py",
    ),
    Break(
        "no-bias-correction", "the running means are used as if they had not begun at zero",
        "minigpt/optim/adamw.py",
        "correction1, correction2_sqrt = 1.0 - beta1**t, math.sqrt(1.0 - beta2**t)",
        "correction1, correction2_sqrt = 1.0, 1.0",
        "tests/parity/test_09_adamw.py",
    ),
    Break(
        "epsilon-in-the-root", "epsilon is added before the root and not behind it",
        "minigpt/optim/adamw.py",
        "denominator = square.sqrt().add_(eps_hat).mul_(inverse_step_size)",
        "denominator = square.add(eps_hat).sqrt().mul_(inverse_step_size)",
        "tests/parity/test_09_adamw.py",
    ),
    Break(
        "norms-decay", "weight decay pulls LayerNorms and biases to zero too",
        "minigpt/optim/adamw.py",
        "decay = weight_decay if is_matrix else 0.0",
        "decay = weight_decay",
        "tests/parity/test_09_adamw.py",
    ),
    Break(
        "clip-enlarges", "clipping without its upper bound: small gradients are made large",
        "minigpt/optim/update.py",
        "scale = torch.clamp(limit / (norm + 1e-6), max=1.0) if limit else torch.ones_like(norm)",
        "scale = limit / (norm + 1e-6) if limit else torch.ones_like(norm)",
        "tests/optim/test_update.py",
    ),
    Break(
        "one-order-for-all-epochs", "every epoch has the order of the first",
        "minigpt/data/shuffle.py",
        'digest = hashlib.blake2b(b"%d %d" % (seed, epoch), digest_size=48).digest()',
        'digest = hashlib.blake2b(b"%d %d" % (seed, 0), digest_size=48).digest()',
        "tests/data/test_loader.py",
    ),
    Break(
        "mean-of-means", "each micro-batch is averaged by itself, and then their means",
        "minigpt/training/trainer.py",
        "loss = self.forward(part) / batch.supervised",
        "loss = self.forward(part) / (part.targets >= 0).sum() / len(parts)",
        "tests/parity/test_12_micro_batches.py",
    ),
    Break(
        "step-forgotten", "a resumed AdamW corrects its means as if they were fresh",
        "minigpt/checkpoint/resume.py",
        'group["step"] = step',
        'group["step"] = 0',
        "tests/parity/test_13_resume.py",
    ),
    Break(
        "cache-position-off-by-one", "what follows a cache takes the position of its last token",
        "minigpt/model/cache.py",
        "places = torch.arange(self.length, self.length + new, device=device)",
        "places = torch.arange(new, device=device) + max(0, self.length - 1)",
        "tests/parity/test_10_cache.py",
    ),
    Break(
        "mask-in-the-wrong-corner", "several tokens on a cache, with the triangle of a full square",
        "minigpt/model/cache.py",
        "return torch.ones(new, seen, dtype=torch.bool, device=device).tril(seen - new)",
        "return torch.ones(new, seen, dtype=torch.bool, device=device).tril()",
        "tests/parity/test_10_cache.py",
    ),
    Break(
        "rows-leak", "attention in a packed row runs over the documents' borders",
        "minigpt/model/attention.py",
        "pieces = [length for row in lengths for length in row]",
        "pieces = [sum(row) for row in lengths]",
        "tests/parity/test_11_packing.py",
    ),
    Break(
        "positions-run-on", "the second record of a row does not begin at position 0",
        "minigpt/data/packing.py",
        "batch.positions = _stacked([[np.arange(n) for n in row] for row in batch.lengths])",
        "batch.positions = _stacked([[np.arange(sum(row))] for row in batch.lengths])",
        "tests/data/test_packing.py",
    ),
    Break(
        "end-not-learned", "the end token is not supervised: the model never learns to stop",
        "minigpt/data/template.py",
        "learned += [False] * len(prompt) + [not unlearned] * len(reply)",
        "learned += [False] * len(prompt) + [not unlearned] * (len(reply) - 1) + [False]",
        "tests/data/test_template.py",
    ),
    Break(
        "prompt-learned", "the loss is taken on the question as well as on the answer",
        "minigpt/data/template.py",
        "learned += [False] * len(prompt) + [not unlearned] * len(reply)",
        "learned += [not unlearned] * (len(prompt) + len(reply))",
        "tests/data/test_template.py",
    ),
    Break(
        "adapter-starts-random", "both matrices are drawn, so a fresh adapter changes the model",
        "minigpt/model/lora.py",
        "self.b = nn.Parameter(like.new_zeros(like.size(0), config.rank))",
        "self.b = nn.Parameter(like.new_empty(like.size(0), config.rank).normal_(0.0, 0.02))",
        "tests/model/test_lora.py",
    ),
    Break(
        "square-not-turned", "a matrix is turned where its shape does not fit: a square one fits",
        "minigpt/hf/layout.py",
        "return tensor.t() if is_transposed(ours) else tensor",
        "return tensor.t() if is_transposed(ours) and len({*tensor.shape}) == 2 else tensor",
        "tests/parity/test_14_hf_round_trip.py",
    ),
]  # fmt: skip


def broken(text: str, one: Break) -> str:
    """`text` with the line replaced; ValueError unless it occurs exactly once."""
    lines = text.splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if line.strip() == one.old]
    if len(places) != 1:
        what = f"the break {one.name} is out of date: its line is {len(places)} times"
        raise ValueError(f"{what} in {one.file}, and not once")
    lines[places[0]] = lines[places[0]].replace(one.old, one.new)
    return "".join(lines)


def write(path: Path, text: str) -> None:
    """Writes a module, and removes what Python keeps of the old one: it looks at whole seconds."""
    path.write_text(text, encoding="utf-8")
    with suppress(FileNotFoundError):
        Path(importlib.util.cache_from_source(str(path))).unlink()


def copy(tree: Path) -> None:
    """What the rungs need of this project, without what Python made of it."""
    for name in COPIED:
        source, left_out = ROOT / name, shutil.ignore_patterns("__pycache__", ".*")
        if source.is_dir():
            shutil.copytree(str(source), str(tree / name), ignore=left_out)
        else:
            shutil.copy(str(source), str(tree / name))


class Failed:
    """A plugin of pytest that keeps the names of the tests in which an assertion failed: a test
    that ends in another error says no more than that the broken line is no Python.
    """

    def __init__(self) -> None:
        self.names: List[str] = []

    def pytest_runtest_logreport(self, report) -> None:
        crash = getattr(report.longrepr, "reprcrash", None)
        if report.failed and crash and crash.message.startswith(("assert", "AssertionError")):
            self.names.append(report.nodeid)


def run(tree: Path, words: List[str], quiet: bool) -> Tuple[int, List[str]]:
    """Runs pytest in a copy of this process, on the tree: its exit code, and what failed."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, json.dumps(_pytest(tree, words, quiet)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    code, names = json.loads(answer.decode()) if answer else (3, [])
    return code, names


def _pytest(tree: Path, words: List[str], quiet: bool) -> Tuple[int, List[str]]:
    import pytest

    if quiet:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
    os.chdir(str(tree))
    sys.path.insert(0, str(tree))
    import minigpt

    assert Path(minigpt.__file__).resolve().parent.parent == tree, "this is not the copy"
    failed, temporary = Failed(), tree / "temporary"
    words = [*words, "-m", "not slow", "--disable-warnings", "--basetemp", str(temporary)]
    return int(pytest.main(words, plugins=[failed])), failed.names


def import_once() -> None:
    """Imports what the rungs need, for all copies of this process."""
    for name in IMPORTED:
        with suppress(ImportError):
            importlib.import_module(name)
    assert "minigpt" not in sys.modules  # each copy imports its own
    gc.freeze()  # or the first collection of each copy would write to all of these pages


def rung_of(one: Break) -> List[str]:
    """The files of tests that see it; without transformers, also those with its tensors."""
    oracle = importlib.util.find_spec("transformers") is not None
    return [one.rung] if oracle else [one.rung, GOLDEN]


def show(one: Break, tree: Path) -> bool:
    """One break, with all that it does; returns whether the rung has seen it."""
    path = tree / one.file
    before = path.read_text(encoding="utf-8")
    after = broken(before, one)
    lines = before.splitlines(), after.splitlines()
    print(f"{one.name}: {one.says}\n")
    print(*difflib.unified_diff(*lines, one.file, one.file, n=2, lineterm=""), sep="\n")
    print(f"\npython -m pytest -s {one.rung}\n")
    write(path, after)
    code, names = run(tree, [*rung_of(one), "-s", "--tb=no"], quiet=False)
    seen = code == 1 and bool(names)
    print(f"\nseen: {len(names)} tests failed" if seen else f"\nNOT SEEN: {WITHOUT % code}")
    return seen


def show_all(tree: Path) -> bool:
    """Every break up to its first failure, and then those tests once more, without any break."""
    import_once()
    witnesses, good = [], True
    for one in BREAKS:
        path = tree / one.file
        before = path.read_text(encoding="utf-8")
        write(path, broken(before, one))
        code, names = run(tree, [*rung_of(one), "-x"], quiet=True)
        write(path, before)
        seen = code == 1 and bool(names)
        says = names[0] if seen else f"NOT SEEN by {one.rung}: {WITHOUT % code}"
        print(f"{one.name:<25} {says}", flush=True)
        witnesses, good = witnesses + names, good and seen
    code, names = run(tree, sorted({*witnesses}), quiet=True)
    if code or names:
        print(f"and these fail without a break (pytest ended with {code}):", *names)
        return False
    print(f"\n{len(BREAKS)} breaks; the tests that saw them are green without")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("name", nargs="?", choices=[one.name for one in BREAKS], metavar="NAME")
    parser.add_argument("--all", action="store_true", help="all of them, in short")
    parser.add_argument("--list", action="store_true", help="their names, and what they are")
    asked = parser.parse_args()
    if asked.list or not (asked.name or asked.all):
        for one in BREAKS:
            print(f"{one.name:<25} {one.says}")
        return 0
    if not all(map(importlib.util.find_spec, ("pytest", "torch"))):
        print("the rungs need pytest and PyTorch: pip install -r requirements-test.txt")
        return 1
    if not hasattr(os, "fork"):
        print("the breaks run in copies of this process, which this system cannot make (os.fork)")
        return 1
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the rungs need none, and they take long
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory).resolve()
        copy(tree)
        try:
            if asked.all:
                return 0 if show_all(tree) else 1
            [chosen] = [one for one in BREAKS if one.name == asked.name]
            return 0 if show(chosen, tree) else 1
        except ValueError as error:
            print(error)
            return 1


if __name__ == "__main__":
    sys.exit(main())
