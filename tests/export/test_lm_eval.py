"""lm-evaluation-harness gives an export's texts the likelihood that our own logits give them."""

import json

import pytest
import torch

from minigpt import load_model, load_tokenizer
from tests.helpers.exported import exported

pytestmark = [pytest.mark.oracle, pytest.mark.slow]
lm_eval = pytest.importorskip("lm_eval", reason="pip install -r requirements-export.txt")

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}]
"""
PERPLEXITY = """
task: tiny_perplexity
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}{{choices[0]}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
DOCUMENTS = [
    {"question": "def add(a, b):\n    return", "choices": [" a + b", " None"], "answer": 0},
    {"question": "The sky is", "choices": [" blue.", " a fish", " 하늘"], "answer": 0},
    {"question": "import", "choices": [" torch\n\n\nclass A:\n    x = 1", " os"], "answer": 1},
    {"question": "1 + 1 =", "choices": [" 2", " 3", " 11", " two"], "answer": 0},
]


@pytest.fixture
def results(tmp_path, monkeypatch):
    """What the harness reports of the two tasks, its samples with it; nothing is downloaded."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    exported(tmp_path)
    documents = tmp_path / "documents.jsonl"
    documents.write_text("\n".join(map(json.dumps, DOCUMENTS)))
    (tmp_path / "tasks").mkdir()
    for name, task in (("choice", CHOICE), ("perplexity", PERPLEXITY)):
        (tmp_path / "tasks" / (name + ".yaml")).write_text(task % documents)
    from lm_eval.tasks import TaskManager

    return lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "theirs"), "dtype": "float32"},
        tasks=["tiny_choice", "tiny_perplexity"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        device="cpu",
        batch_size=3,
        bootstrap_iters=0,
    )


def test_likelihoods_are_ours(results, tmp_path):
    model, tokenizer = load_model(tmp_path / "ours"), load_tokenizer(tmp_path / "ours")

    def likelihood(ids, known):
        """log p(ids[known:] | ids[:known])"""
        scores = model(torch.tensor([ids]))[0, known - 1 : -1].log_softmax(-1)
        return scores.gather(1, torch.tensor(ids)[known:, None]).sum().item()

    found, expected = [], []
    for sample in results["samples"]["tiny_choice"]:
        found += [float(answer[0]) for answer in sample["filtered_resps"]]
        question = sample["doc"]["question"]
        for choice in sample["doc"]["choices"]:
            ids = tokenizer.encode(question + choice)
            expected.append(likelihood(ids, len(tokenizer.encode(question))))
    for sample in results["samples"]["tiny_perplexity"]:
        found += map(float, sample["filtered_resps"])
        ids = [tokenizer.eos_id, *tokenizer.encode(sample["target"])]
        expected.append(likelihood(ids, 1))
    assert len(found) == 11 + 4 and min(expected) < -20
    print("largest difference", max(abs(a - b) for a, b in zip(found, expected)))
    assert found == pytest.approx(expected, rel=0, abs=1e-4)
