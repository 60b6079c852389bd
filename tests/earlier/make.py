"""Made what test_earlier.py opens: run in an empty directory, with version 0.1.0 as it was at
commit 007ec86 on PYTHONPATH (today's has other modules).
"""
# ruff: noqa: I001, C408

import json
import shutil
from pathlib import Path
import torch

from minigpt.checkpoint import manifest
from minigpt.checkpoint.model_files import save_model
from minigpt.data.prepare import PrepareConfig, prepare
from minigpt.data.tokenizer import load_tokenizer
from minigpt.files import atomic_directory
from minigpt.model.gpt import GPT, GPTConfig
from minigpt.training.config import TrainConfig
from minigpt.training.setup import build, create_run

torch.set_num_threads(1)
words = "".join(
    "def f%d(x):\n    return x + %d  # %s\n" % (n, n * n, "abc"[n % 3] * (n % 7)) for n in range(60)
)
Path("words.txt").write_text(words)
with open("records.jsonl", "w") as file:
    for n in range(40):
        file.write(
            json.dumps({"instruction": "add %d to x" % n, "output": "return x + %d" % (n * 3)})
            + "\n"
        )
torch.manual_seed(3)
tokenizer = load_tokenizer("bytes")
with atomic_directory(Path("base")) as partial:
    records = save_model(partial, GPT(GPTConfig(257, 64, 1, 2, 16, init_std=0.1)))
    tokenizer.save(partial)
    manifest.write_manifest(partial, records)
common = dict(
    init="base",
    batch_size=4,
    micro_batch_size=2,
    block_size=64,
    steps=8,
    warmup_steps=2,
    lr=1e-2,
    seed=5,
    log_every=1,
    eval_every=4,
    save_every=4,
    sample_every=0,
)
runs = {
    "text": dict(data="words.txt"),
    "records": dict(data="records.jsonl"),
    "adapter": dict(data="records.jsonl", lora_rank=2),
    "bf16": dict(data="words.txt", precision="bf16"),
    "frozen": dict(data="prepared-text", freeze_layers=0),
}
prepare(PrepareConfig("words.txt", "prepared-text", tokenizer="bytes"))
prepare(PrepareConfig("records.jsonl", "prepared-records", tokenizer="bytes"))
for name, settings in runs.items():
    run = Path("runs") / name
    trainer = build(TrainConfig(**{**common, **settings, "out": str(run)}))
    create_run(trainer)
    assert trainer.train() == 0
    last = run / "checkpoints/step_00000008"
    weights = last / ("adapter.safetensors" if name == "adapter" else "model.safetensors")
    shutil.copy(weights, run / "after_8_steps.safetensors")
    shutil.rmtree(last)
    (run / "latest").write_text("checkpoints/step_00000004\n")
    (run / "best").write_text("checkpoints/step_00000004\n")
