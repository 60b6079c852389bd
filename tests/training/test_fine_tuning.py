"""Instructions and answers: packed or not, all weights or an adapter, in one loop."""

import json
import shutil

import numpy as np
import pytest
import torch

from minigpt import load_model, load_tokenizer
from minigpt.__main__ import command as minigpt
from minigpt.base.errors import CheckpointError, DataError, UsageError
from minigpt.base.files import atomic_directory
from minigpt.checkpoint import manifest
from minigpt.checkpoint.model_files import read_adapter, save_model
from minigpt.checkpoint.run_files import resolve
from minigpt.data.batch import IGNORE
from minigpt.data.datasets import open_datasets
from minigpt.devices.device import find_device
from minigpt.hf.export import export
from minigpt.model import gpt
from minigpt.model.attention import HAS_FUSED, explicit_attention, fused_attention
from minigpt.training import varlen
from minigpt.training.apply import objective_for
from minigpt.training.build import create_run
from tests.helpers.runs import corpus, records, train
from tests.helpers.tuning import base, instructions, resumed, run_to_the_end, tuning

needs_compiler = pytest.mark.skipif(not hasattr(torch, "compile"), reason="no torch.compile")
FORMS = [explicit_attention] + ([fused_attention] if HAS_FUSED else [])


def test_answer_loss_falls_and_the_checkpoint_remembers_its_template(tmp_path, capsys):
    run = run_to_the_end(tuning(tmp_path, steps=8))
    losses = list(records(run, "val_loss").values())
    assert losses[-1] < losses[0]
    assert json.loads((resolve(run) / "template.json").read_text())["name"] == "instruct"
    capsys.readouterr()
    minigpt(
        ["generate", "--checkpoint", str(run), "--instruct", "--prompt", "def f():",
         "--max-new-tokens", "4", "--temperature", "0"]
    )  # fmt: skip
    assert "[INST]" not in capsys.readouterr().out  # the answer alone


def test_instruct_needs_a_tuned_checkpoint(tmp_path):
    with pytest.raises(UsageError, match="was not tuned on instructions"):
        minigpt(["generate", "--checkpoint", str(base(tmp_path / "b")), "--instruct"])


def sum_and_gradients(objective, batch):
    loss = objective(batch)
    return loss, torch.autograd.grad(loss, list(objective.parameters()))


# By lengths; under a mask; the plain formula under a mask; in one kernel (a GPU's: here its
# formula, tests/devices/test_gpu.py has the real one); compiled, under a mask.
PATHS = [
    {}, {"masked": True}, {"same_shapes": True}, {"varlen": True},
    pytest.param({"compiled": True}, marks=[pytest.mark.slow, needs_compiler]),
]  # fmt: skip


def one_by_one(q, k, v, starts, other_starts, longest, _, *, scale, window_size):
    """What torch.nn.attention.varlen.varlen_attn computes: q, k, v (all tokens, H, D)."""
    assert starts is other_starts and starts.dtype == torch.int32 and window_size == (-1, 0)
    assert starts[0] == 0 and starts[-1] == len(q) and starts.diff().max() <= longest
    parts = [x.transpose(0, 1)[None].split(starts.diff().tolist(), 2) for x in (q, k, v)]
    done = [explicit_attention(*three, None, scale, 0.0) for three in zip(*parts)]
    return torch.cat(done, 2)[0].transpose(0, 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", PATHS)
def test_packed_rows_equal_separate_rows(tmp_path, form, path, monkeypatch):
    """Real functions, packed and one a row: loss, every gradient."""
    if path.get("compiled") and form is not FORMS[-1]:
        pytest.skip("compiled in the form that is used where there is a compiler")
    if path.get("varlen"):
        if not HAS_FUSED or form is not FORMS[-1]:
            pytest.skip("one kernel stands in for fused attention alone")
        monkeypatch.setattr(varlen, "kernel", lambda: one_by_one)
        form = varlen.varlen_attention
    records, data = instructions(tmp_path / "all.jsonl").open().readlines(), tmp_path / "f.jsonl"
    data.write_text("".join(records[::2]))
    model = gpt.GPT(load_model(base(tmp_path / "base")).config).use_attention(form)
    tokenizer, results = load_tokenizer(tmp_path / "base"), []
    for packing in (True, False):
        dataset = open_datasets(str(data), tokenizer, 1024, packing=packing).train
        batch = dataset.batch(np.arange(len(dataset)))
        assert (batch.lengths is not None) == packing
        compiled = packing and path.get("compiled", False)
        objective = objective_for(model, find_device("cpu"), compiled=compiled)
        objective.masked = objective.masked or path.get("masked", False)
        objective.varlen = path.get("varlen", False)
        if path.get("same_shapes"):
            objective.masked = objective.same_shapes = True
        results.append((len(dataset), batch.supervised, *sum_and_gradients(objective, batch)))
    packed, apart = results
    assert packed[0] < apart[0] and packed[1] == apart[1]
    assert (packed[2] - apart[2]).abs() <= 1e-5 * apart[2]
    for mine, other in zip(packed[3], apart[3]):
        assert (mine - other).abs().max() <= 1e-5 * other.abs().max()


def test_micro_batches_of_packed_rows_give_the_same_gradients(tmp_path):
    gradients = []
    for rows in (4, 1):
        trainer = tuning(tmp_path, micro_batch_size=rows)
        batch = next(trainer.loader)
        trainer.loader.close()
        for micro in batch.micro_batches(rows):
            (trainer.objective(micro) / batch.supervised).backward()
        gradients.append([p.grad for p in trainer.model.parameters()])
    for whole, cut in zip(*gradients):
        assert (whole - cut).abs().max() <= 1e-5 * whole.abs().max()


def test_speed_counts_no_padding(tmp_path):
    run = run_to_the_end(tuning(tmp_path, packing=False, steps=2))
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-2]
    assert last["supervised_per_second"] < last["tokens_per_second"]
    assert last["tokens_per_second"] < last["padded_tokens_per_second"]


def test_tutorial_template_pads_each_record_and_learns_the_prompt(tmp_path):
    trainer = tuning(tmp_path, template="moai")
    batch = next(trainer.loader)
    trainer.loader.close()
    assert batch.positions is None and batch.lengths is None
    tokenizer = trainer.tokenizer
    for tokens, targets in zip(batch.tokens, batch.targets):
        ids = targets[targets != IGNORE]
        assert torch.equal(ids, tokens[1 : len(ids) + 1])  # from the second token on, all of it
        assert tokenizer.eos_id not in ids
        text = tokenizer.decode(tokens.tolist())
        assert text.startswith("[INST] ") and ("</s>" in text or len(ids) == 1023)


def test_adapter_checkpoint_is_small_and_equals_its_merged_one(tmp_path, capsys):
    run = run_to_the_end(tuning(tmp_path, lora_rank=4))
    checkpoint = resolve(run)
    names = {path.name for path in checkpoint.iterdir()}
    assert "adapter.safetensors" in names and "model.safetensors" not in names
    size = sum((checkpoint / f"{n}.safetensors").stat().st_size for n in ("adapter", "optimizer"))
    assert size < (tmp_path / "base" / "model.safetensors").stat().st_size / 2
    minigpt(["merge", "--checkpoint", str(run), "--out", str(tmp_path / "merged")])
    merged, adapted = load_model(tmp_path / "merged"), load_model(run)
    assert read_adapter(tmp_path / "merged") is None
    for mine, other in zip(merged.parameters(), adapted.parameters()):
        assert torch.equal(mine, other)
    assert (tmp_path / "merged" / "template.json").exists()
    assert "merged" in capsys.readouterr().out


def test_merged_model_computes_what_the_trained_one_did(tmp_path):
    trainer = tuning(tmp_path, lora_rank=4, lr=1e-2)
    run = run_to_the_end(trainer)
    tokens = torch.randint(0, 257, (2, 50))
    expected = trainer.model.eval()(tokens)
    logits = load_model(run / "checkpoints" / "step_00000006")(tokens)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    untuned = load_model(tmp_path / "base")(tokens)
    assert (logits - untuned).abs().max() > 1e-3 * untuned.abs().max()


@pytest.mark.oracle
def test_transformers_opens_the_export_of_an_adapter(tmp_path):
    transformers = pytest.importorskip("transformers")
    run = run_to_the_end(tuning(tmp_path, tokenizer="gpt2", lora_rank=4, lr=1e-2, steps=2))
    export(run, tmp_path / "hf")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(str(tmp_path / "hf"))
    tokens = torch.randint(0, 50257, (2, 50))
    expected = theirs(tokens).logits
    assert (load_model(run)(tokens) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 3, "lora_dropout": 0.2}])
def test_resumed_tuning_is_the_run_it_would_have_been(tmp_path, settings):
    """With dropout and packed rows, byte for byte."""
    whole = run_to_the_end(tuning(tmp_path, "whole", **settings))
    half = tuning(tmp_path, "half", **settings)
    stop_after(half, 4)
    assert resumed(half).train() == 0
    last = "checkpoints/step_00000006"
    for path in sorted((whole / last).glob("*")):
        if path.name != "manifest.json":
            assert path.read_bytes() == (half.run / last / path.name).read_bytes(), path.name
    assert records(whole) == records(half.run)


def stop_after(trainer, step):
    """Runs `trainer` as if it were killed after saving `step`."""
    create_run(trainer)
    real = trainer.finished
    trainer.finished = lambda: real() or trainer.state.step >= step
    trainer.train()


def test_adapter_without_its_base_says_so(tmp_path):
    run = run_to_the_end(tuning(tmp_path, lora_rank=2, steps=2))
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="which is not there; put that back"):
        load_model(run)
    base(tmp_path / "base", positions=128)
    with pytest.raises(CheckpointError, match="which is another one by now"):
        load_model(run)


def test_patience_stops_and_keeps_the_best(tmp_path, capsys):
    trainer = tuning(tmp_path, lr=3.0, steps=40, eval_every=1, patience=2, save_every=0)
    run = run_to_the_end(trainer)
    state = trainer.state
    assert state.worse == 2 and state.step < 40
    assert resolve(run).name == "step_%08d" % state.best_step
    assert "no better for 2 validations" in capsys.readouterr().out
    with pytest.raises(UsageError, match="larger --patience"):
        resumed(run, lr=1.0)


def test_frozen_layers_stay_as_they_were(tmp_path):
    run = run_to_the_end(tuning(tmp_path, freeze_layers=1, steps=3))
    before = dict(load_model(tmp_path / "base").named_parameters())
    moved = {n for n, p in load_model(run).named_parameters() if not torch.equal(p, before[n])}
    assert moved and all(name.startswith(("blocks.1.", "final_norm.")) for name in moved)


def test_unusable_records_are_counted_and_strict_stops_at_the_first(tmp_path):
    data = instructions(tmp_path / "functions.jsonl")
    lines = data.read_text().splitlines()
    lines[:0] = ["{broken", json.dumps({"instruction": "x", "output": ""})]
    lines.append(json.dumps({"instruction": "long", "output": "word " * 9999}))
    data.write_text("\n".join(lines))
    base(tmp_path / "base")
    notes = tuning(tmp_path, packing=True).notes
    said = "\n".join(notes)
    assert len(notes) == 4 and "functions.jsonl:1)" in said and "functions.jsonl:2)" in said
    with pytest.raises(DataError, match=r"functions.jsonl:1: .*--strict"):
        tuning(tmp_path, "other", strict=True)


def test_the_command_says_what_it_left_out_and_how_to_go_on(tmp_path):
    base(tmp_path / "base")
    data = instructions(tmp_path / "functions.jsonl")
    done = train(
        tmp_path, "--init", tmp_path / "base", "--data", data, "--lora-rank", 2, "--steps", 2,
        "--batch-size", 2, "--block-size", 512, "--out", tmp_path / "run",
    )  # fmt: skip
    assert "left out" in done.stdout and "of answers)" in done.stdout
    assert '--instruct --prompt "..."' in done.stdout and "gzip" not in done.stdout
    again = train(tmp_path, "--resume", tmp_path / "run", "--steps", 4, "--patience", 1)
    assert "step 4/4" in again.stdout


def test_an_adapter_outlives_the_run_it_was_started_from_and_a_move(tmp_path):
    """The base's run goes on and removes that checkpoint; then the adapter's run is moved."""
    before = run_to_the_end(tuning(tmp_path, "before", steps=2, keep=1))
    run = run_to_the_end(tuning(tmp_path, "tuned", init=str(before), lora_rank=2, steps=2))
    expected = [p.clone() for p in load_model(run).parameters()]
    shutil.rmtree(before)
    run.rename(tmp_path / "elsewhere")
    found = list(load_model(tmp_path / "elsewhere").parameters())
    assert all(torch.equal(mine, other) for mine, other in zip(found, expected))
    assert resumed(tmp_path / "elsewhere", steps=4).train() == 0


def test_an_adapter_on_an_adapter_outlives_all_that_it_was_started_from(tmp_path):
    first = run_to_the_end(tuning(tmp_path, "first", lora_rank=2, steps=2))
    second = run_to_the_end(tuning(tmp_path, "second", init=str(first), lora_rank=2, steps=2))
    third = run_to_the_end(tuning(tmp_path, "third", init=str(second), lora_rank=3, steps=2))
    expected = [p.clone() for p in load_model(third).parameters()]
    for gone in (first, second, tmp_path / "base"):
        shutil.rmtree(gone)
    third.rename(tmp_path / "elsewhere")
    found = list(load_model(tmp_path / "elsewhere").parameters())
    assert all(torch.equal(mine, other) for mine, other in zip(found, expected))
    assert resumed(tmp_path / "elsewhere", steps=4).train() == 0


def test_a_base_of_16_bits_is_merged_in_32_when_asked(tmp_path):
    """Merged into bfloat16 the sum is rounded; in float32 it is what was trained."""
    start = base(tmp_path / "base")
    half = tmp_path / "half"
    with atomic_directory(half) as partial:
        saved = save_model(partial, load_model(start, dtype=torch.bfloat16))
        load_tokenizer(start).save(partial)
        manifest.write_manifest(partial, saved)
    instructions(tmp_path / "functions.jsonl")
    trainer = tuning(tmp_path, init=str(half), lora_rank=4, lr=1e-2)
    run = run_to_the_end(trainer)
    tokens = torch.randint(0, 257, (2, 50))
    expected, last = trainer.model.eval()(tokens), run / "checkpoints" / "step_00000006"
    merge = ["merge", "--checkpoint", str(last), "--out", str(tmp_path / "merged")]
    minigpt([*merge, "--dtype", "fp32"])
    for model in (load_model(tmp_path / "merged"), load_model(last, dtype=torch.float32)):
        assert (model(tokens) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "before, after, says",
    [
        ({"lora_rank": 2}, {"lora_rank": 4}, "--lora-rank was 2"),
        ({"lora_rank": 2}, {"lora_rank": 0}, "--lora-rank was 2"),
        ({}, {"lora_rank": 4}, "--lora-rank was 0"),
        ({}, {"freeze_layers": 1}, "--freeze-layers was None"),
        ({}, {"precision": "bf16"}, "keeps other weights"),
    ],
)
def test_a_resumed_run_trains_what_it_trained(tmp_path, before, after, says):
    run = run_to_the_end(tuning(tmp_path, steps=2, **before))
    with pytest.raises(UsageError, match=says):
        resumed(run, steps=4, **after)


def test_going_on_keeps_the_template(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = run_to_the_end(tuning(tmp_path, "first", template="moai", steps=2))
    again = tuning(tmp_path, "again", init=str(first), steps=2)
    assert again.template.name == "moai" and again.settings.template == "moai"
    text = corpus(tmp_path / "corpus")
    run = run_to_the_end(
        tuning(tmp_path, "text", init=str(first), data=str(text), block_size=32, steps=2)
    )
    assert json.loads((resolve(run) / "template.json").read_text())["name"] == "moai"


def test_what_text_has_no_use_for(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = {"data": str(corpus(tmp_path / "corpus")), "block_size": 32}
    with pytest.raises(UsageError, match="--template is for records"):
        tuning(tmp_path, template="moai", **text)


def test_several_samples_of_an_answer_do_not_repeat_the_question(tmp_path, capsys):
    run = run_to_the_end(tuning(tmp_path, steps=2))
    capsys.readouterr()
    minigpt(
        ["generate", "--checkpoint", str(run), "--instruct", "--prompt", "def what_is_asked():",
         "--max-new-tokens", "4", "--samples", "2"]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "sample 2 of 2" in printed and "what_is_asked" not in printed


def test_tokens_are_counted_without_padding(tmp_path):
    trainer = tuning(tmp_path, packing=False, steps=2)
    run = run_to_the_end(trainer)
    counted = list(records(run, "tokens").values())[-1]
    assert counted == trainer.state.tokens_seen < 2 * 4 * 1024


def test_a_damaged_adapter_file_is_one_sentence(tmp_path):
    run = run_to_the_end(tuning(tmp_path, lora_rank=2, steps=2))
    path = resolve(run) / "adapter.json"
    path.write_text(path.read_text().replace('"base"', '"bass"'))
    with pytest.raises(CheckpointError, match=r"is not (as it|what) was written"):
        read_adapter(resolve(run))


def test_flags_win_over_a_file_of_settings(tmp_path):
    """Also where the file alone would make no sense, or says the same in another way."""
    base(tmp_path / "base")
    data = instructions(tmp_path / "functions.jsonl")
    (tmp_path / "a.toml").write_text("lora_rank = 2\nsteps = 9\n")
    done = train(
        tmp_path, "--config", tmp_path / "a.toml", "--init", tmp_path / "base", "--data", data,
        "--epochs", 1, "--block-size", 512, "--dry-run",
    )  # fmt: skip
    assert "an adapter of rank 2" in done.stdout and "dry run" in done.stdout
