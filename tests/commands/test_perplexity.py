"""`evaluate --data` of a text: all of it, and the perplexity that the usual protocol gives."""

import re

import pytest
import torch

from minigpt.base.errors import UsageError
from minigpt.commands.evaluate import EvaluateConfig, evaluate_command
from minigpt.data.tokenizer import load_tokenizer
from tests.helpers.tuning import base, run_to_the_end, tuning

TEXT = "".join("line %d of a text, né\n" % n for n in range(60))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "held.txt").write_text(TEXT, encoding="utf-8")


def measured(capsys, checkpoint, **settings):
    evaluate_command(EvaluateConfig(checkpoint=str(checkpoint), device="cpu", **settings))
    text = capsys.readouterr().out
    found = re.search(r"loss ([\d.]+), .*\(([\d,]+) (.*)\) of ([\d,]+) in all", text)
    return float(found[1]), int(found[2].replace(",", "")), int(found[4].replace(",", "")), text


@pytest.mark.parametrize("block, stride", [(64, 16), (64, 64), (50, 1), (64, 63), (2000, 500)])
def test_the_usual_protocol(capsys, tmp_path, block, stride):
    """Hugging Face's, "Perplexity of fixed-length models": windows of max_length tokens, of each
    the last ones that were not in the window before.
    """
    start = base(tmp_path / "base", positions=2048)
    from minigpt import load_model

    model, ids = load_model(start), torch.tensor([load_tokenizer("bytes").encode(TEXT)])
    length, before, nats, count = ids.size(1), 0, 0.0, 0
    for begin in range(0, length, stride):
        end = min(begin + block, length)
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - before)] = -100
        with torch.no_grad():
            logits = model(ids[:, begin:end])
        learned = labels[:, 1:] != -100
        nats += torch.nn.functional.cross_entropy(
            logits[:, :-1][learned], labels[:, 1:][learned], reduction="sum"
        ).item()
        count += int(learned.sum())
        before = end
        if end == length:
            break
    data = str(tmp_path / "held.txt")
    loss, tokens, total, _ = measured(capsys, start, data=data, block_size=block, stride=stride)
    assert (tokens, total) == (count, length)
    assert loss == pytest.approx(nats / count, abs=1e-4)


@pytest.mark.oracle
def test_it_is_what_transformers_gives(capsys, tmp_path):
    transformers = pytest.importorskip("transformers")
    from minigpt.__main__ import command  # noqa: F401
    from minigpt.__main__ import convert as convert_command
    from minigpt.commands.cli import run

    start = base(tmp_path / "base", "gpt2", positions=128)
    words = ["--to-hf", str(start), "--out", str(tmp_path / "hf")]
    assert run(convert_command, words) in (0, None)
    capsys.readouterr()
    model = transformers.GPT2LMHeadModel.from_pretrained(str(tmp_path / "hf")).eval()
    ids = torch.tensor([load_tokenizer(start).encode(TEXT)])
    width, stride, before, nats, count = 128, 64, 0, 0.0, 0
    for begin in range(0, ids.size(1), stride):
        end = min(begin + width, ids.size(1))
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - before)] = -100
        valid = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            nats += model(ids[:, begin:end], labels=labels).loss.item() * valid
        count, before = count + valid, end
        if end == ids.size(1):
            break
    data = str(tmp_path / "held.txt")
    loss, tokens, _, _ = measured(capsys, start, data=data, block_size=width, stride=stride)
    assert tokens == count and loss == pytest.approx(nats / count, rel=1e-4)


def test_all_is_measured_but_what_a_run_has_learned_from(capsys, tmp_path):
    data = str(tmp_path / "held.txt")
    run = run_to_the_end(tuning(tmp_path, data=data, block_size=32, validation="0.2"))
    size = len(TEXT.encode())
    _, tokens, total, text = measured(capsys, run, data=data, block_size=32)
    assert 0.1 < tokens / size < 0.25 and total == size + 2 and "the last 20% of held.txt" in text
    (tmp_path / "other.txt").write_text(TEXT, encoding="utf-8")
    other = str(tmp_path / "other.txt")
    assert measured(capsys, run, data=other, block_size=32)[1] == size - 1
    assert measured(capsys, run, data=other, block_size=32, held_out=True)[1] < 0.1 * size


def test_windows_have_no_gaps(capsys, tmp_path):
    start = base(tmp_path / "base", positions=64)
    with pytest.raises(UsageError, match="--stride 65 leaves gaps"):
        measured(capsys, start, data=str(tmp_path / "held.txt"), stride=65)
