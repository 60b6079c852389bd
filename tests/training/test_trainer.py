"""The loop: what a step computes, what it writes, and what it does not do."""

import json
from dataclasses import replace

import pytest
import torch

from minigpt.checkpoint.model_files import load_model
from minigpt.model.lora import LoRAConfig
from minigpt.planning.fit import flops_per_token
from minigpt.training.build import _peak, create_run
from tests.helpers.runs import corpus, files, records, train
from tests.helpers.tuning import trainer_of


def trainer(tmp_path, monkeypatch, **settings):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    defaults = {"data": str(corpus(tmp_path / "corpus")), "out": str(tmp_path / "run")}
    defaults.update(batch_size=8, block_size=32, steps=4, warmup_steps=1, seed=5)
    defaults.update(log_every=1, eval_tokens=640)
    return trainer_of(**{**defaults, **settings})


def losses_and_weights(tmp_path, monkeypatch, **settings):
    run = trainer(tmp_path, monkeypatch, out=str(tmp_path / json.dumps(settings)), **settings)
    create_run(run)
    assert run.train() == 0
    weights = torch.cat([p.detach().flatten() for p in run.model.parameters()])
    return list(records(run.run).values()), weights


def first_gradients(tmp_path, monkeypatch, rows):
    run = trainer(tmp_path, monkeypatch, micro_batch_size=rows)
    batch = next(run.loader)
    run.loader.close()
    total = torch.zeros(())
    for micro in batch.micro_batches(rows):
        loss = run.objective(micro) / batch.supervised
        loss.backward()
        total += loss.detach()
    return total.item(), {n: p.grad for n, p in run.model.named_parameters()}


def test_one_by_eight_is_eight_by_one(tmp_path, monkeypatch):
    """Cutting the step into micro-batches changes neither the loss nor any gradient."""
    loss, whole = first_gradients(tmp_path, monkeypatch, 8)
    for rows in (1, 3):
        other, cut = first_gradients(tmp_path, monkeypatch, rows)
        assert other == pytest.approx(loss, rel=1e-6)
        for name, gradient in whole.items():
            assert (gradient - cut[name]).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_validation_sampling_and_saving_do_not_touch_training(tmp_path, monkeypatch):
    """Bit for bit the same run, however often one looks at it."""
    quiet = losses_and_weights(tmp_path, monkeypatch, eval_every=0, sample_every=0, save_every=0)
    busy = losses_and_weights(tmp_path, monkeypatch, eval_every=1, sample_every=1, save_every=1)
    assert quiet[0] == busy[0] and torch.equal(quiet[1], busy[1])


def test_validation_does_not_depend_on_the_batch_size(tmp_path, monkeypatch):
    values = [
        trainer(tmp_path, monkeypatch, micro_batch_size=rows).validate() for rows in (1, 3, 8)
    ]
    assert values[0].loss == pytest.approx(values[1].loss, rel=1e-6)
    assert values[0].loss == pytest.approx(values[2].loss, rel=1e-6)
    assert len({(value.tokens, value.bytes) for value in values}) == 1


def test_bits_per_byte_of_guessing(tmp_path, monkeypatch):
    """A head of zeros makes all 257 tokens alike: log2(257) bits for each, a byte each."""
    run = trainer(tmp_path, monkeypatch)
    torch.nn.init.zeros_(run.model.token_embedding.weight)
    value = run.validate()
    assert value.perplexity == pytest.approx(257, rel=1e-5)
    assert value.bits_per_byte == pytest.approx(8.00562 * value.tokens / value.bytes, rel=1e-5)


def test_nothing_leaves_the_device_between_log_lines(tmp_path, monkeypatch):
    """Every way to pull a number off a tensor is counted during ten steps that log nothing."""
    never = {"eval_every": 0, "sample_every": 0, "save_every": 0}
    run = trainer(tmp_path, monkeypatch, steps=12, log_every=100, **never)
    create_run(run)
    pulls = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy", "cpu"):
        real = getattr(torch.Tensor, name)

        def counted(self, *args, _real=real, _name=name, **kwargs):
            if run.state.step > 1 and run.state.step < 11:
                pulls.append(_name)
            return _real(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    run.train()
    assert run.state.step == 12 and pulls == []


def test_mfu_is_said_where_the_peak_is_known(tmp_path, monkeypatch, capsys):
    run = trainer(tmp_path, monkeypatch)
    assert run.peak is None  # no table has this CPU
    monkeypatch.setattr("minigpt.training.build.looked_up_peak", lambda device, size: 1e12)
    run.peak = _peak(run.settings, run.device)
    create_run(run)
    run.train()
    line = (run.run / "metrics.jsonl").read_text().splitlines()[-2]
    record = json.loads(line)
    flops = flops_per_token(run.model.config, 32)
    assert record["mfu"] == pytest.approx(record["tokens_per_second"] * flops / 1e12)
    assert "% MFU" in capsys.readouterr().out
    adapter = replace(run.settings, lora=LoRAConfig(4))  # its frozen matrices have no gradients
    assert 1.2 < _peak(adapter, run.device) / run.peak < 1.5


def test_a_run_directory_has_what_the_contract_says(tmp_path):
    done = train(tmp_path, "--steps", 20, "--sample-every", 10, "--out", tmp_path / "run")
    run = tmp_path / "run"
    for name in ("config.toml", "metrics.jsonl", "samples.md", "latest", "best"):
        assert (run / name).is_file(), name
    checkpoint = run / (run / "latest").read_text().strip()
    assert checkpoint.name == "step_00000020"
    for name in ("config.json", "manifest.json", "bytes_tokenizer.json", *files(checkpoint)):
        assert (checkpoint / name).is_file(), name
    assert (run / "samples.md").read_text().count("## step") == 2
    assert "generate --checkpoint %s" % run in done.stdout
    assert "bits per byte" in done.stdout and "gzip -9" in done.stdout
    assert load_model(run).config.vocab_size == 257


def test_the_loss_falls(tmp_path):
    train(tmp_path, "--steps", 60, "--lr", "3e-3", "--eval-every", 0, "--out", tmp_path / "run")
    losses = records(tmp_path / "run")
    # Of one batch it is 0.4 more or less, as the data, this project's source, changes.
    last = [losses[step] for step in range(51, 61)]
    assert 5.0 < losses[1] < 7.5 and sum(last) / 10 < 3.4


def test_keep_removes_the_oldest_but_never_the_best(tmp_path):
    train(tmp_path, "--steps", 8, "--save-every", 1, "--eval-every", 0, "--keep", 2,
          "--out", tmp_path / "run")  # fmt: skip
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["step_00000007", "step_00000008"]


def test_a_loss_that_is_no_number_stops_the_run_and_saves_nothing_ruined(tmp_path):
    done = train(tmp_path, "--steps", 30, "--lr", "9e8", "--grad-clip", 0, "--save-every", 1,
                 "--out", tmp_path / "run", code=1)  # fmt: skip
    assert "stopped being a number" in done.stderr and "--lr" in done.stderr
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        model = load_model(checkpoint)
        assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.slow
def test_compile_is_used_or_refused_in_a_sentence(tmp_path):
    done = train(tmp_path, "--steps", 3, "--compile", "--out", tmp_path / "run")
    if not hasattr(torch, "compile"):
        assert "has no torch.compile" in done.stdout
    assert len(records(tmp_path / "run")) == 3


def test_bf16_mixed_learns_with_fp32_weights(tmp_path):
    train(tmp_path, "--steps", 30, "--precision", "bf16-mixed", "--lr", "3e-3",
          "--out", tmp_path / "run")  # fmt: skip
    losses = records(tmp_path / "run")
    assert losses[30] < losses[1] - 1.0
    assert load_model(tmp_path / "run").final_norm.weight.dtype == torch.float32


def test_dry_run_runs_no_step_and_writes_no_run(tmp_path):
    done = train(tmp_path, "--steps", 3, "--dry-run", "--out", tmp_path / "run")
    assert "no step was run" in done.stdout and not (tmp_path / "run").exists()


def test_init_continues_from_a_run_as_a_new_one(tmp_path):
    train(tmp_path, "--steps", 20, "--lr", "3e-3", "--out", tmp_path / "a")
    train(tmp_path, "--steps", 1, "--init", tmp_path / "a", "--out", tmp_path / "b")
    assert records(tmp_path / "b")[1] < records(tmp_path / "a")[1] - 1.0
