"""Generation: equal to the plain loop without a cache, seeded, and beyond the context."""

import numpy as np
import pytest
import torch

import minigpt
from minigpt.base.errors import CheckpointError, UsageError
from minigpt.commands.generate import notes
from minigpt.decoding.generate import Decoder, Sampling, compiled_step, decode_step, stream
from minigpt.model.attention import HAS_FUSED, explicit_attention, fused_attention
from minigpt.model.gpt import GPT, GPTConfig
from tests.helpers.reference import assert_close


@pytest.fixture()
def model():
    """Wide weights and no biases: a constant bias favours one token, which greedy text repeats."""
    return GPT(GPTConfig(61, 24, 2, 2, 32, init_std=0.6, hidden_init_std=0.6)).eval()


def plain_greedy(model, ids, count):
    """Without a cache: the whole text again for every token."""
    ids = list(ids)
    for _ in range(count):
        ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    return ids[-count:]


def test_greedy_equals_the_plain_loop(model):
    expected = plain_greedy(model, [3, 1, 4], 21)
    assert minigpt.generate(model, [3, 1, 4], 21, temperature=0) == expected
    assert len(set(expected)) > 7, "a text that repeats itself proves little"


def test_the_same_seed_gives_the_same_and_another_another(model):
    first, again, other = (minigpt.generate(model, [5], 20, seed=s) for s in (1, 1, 2))
    assert first == again != other


def test_no_other_random_numbers_are_touched(model):
    before = torch.get_rng_state()
    minigpt.generate(model, [5], 5)
    assert torch.equal(before, torch.get_rng_state())


def test_samples_share_one_prefill_and_are_their_own(model):
    features, seen = model.features, []
    model.features = lambda ids, **more: seen.append(ids.shape) or features(ids, **more)
    rows = list(zip(*stream(model, [[1, 2, 3]], 10, [False] * 4, Sampling(), seed=3)))
    assert seen[0] == (1, 3) and all(shape == (4, 1) for shape in seen[1:])
    assert len(set(rows)) == 4


def test_greedy_samples_are_all_alike(model):
    rows = list(zip(*stream(model, [[1, 2, 3]], 10, [False] * 3, Sampling(0.0))))
    assert rows[0] == rows[1] == rows[2] == tuple(plain_greedy(model, [1, 2, 3], 10))


def test_a_stop_token_ends_its_row_and_is_not_given(model):
    ids = plain_greedy(model, [3], 15)
    stop = ids[6]
    assert ids.index(stop) > 2
    found = minigpt.generate(model, [3], 15, temperature=0, stop_id=stop)
    assert found == ids[: ids.index(stop)]


def test_rows_end_one_by_one(model):
    steps = list(stream(model, [[3]], 20, [False] * 5, Sampling(), seed=0, stop_id=7))
    for row in zip(*steps):
        ended = [token is None for token in row]
        assert ended == sorted(ended) and 7 not in row


def test_beyond_the_context_the_newer_half_is_remembered(model):
    """As if one had started again with the last 12 tokens, each time the 24 positions are full.

    The tokens are given, not generated: what a random model says soon repeats itself, and then
    looks the same whatever is remembered.
    """
    window, decoder = [1, 2, 3], Decoder(model, [[1, 2, 3]], 60)
    for token in torch.randint(0, 61, (60,)).tolist():
        assert_close(decoder.logits, model(torch.tensor([window]))[:, -1])
        decoder.append(torch.tensor([token]))
        window.append(token)
        if len(window) > 24:
            window = window[-12:]


def test_a_prompt_beyond_the_context_keeps_its_end(model):
    prompt = torch.randint(0, 61, (40,)).tolist()
    assert minigpt.generate(model, prompt, 1, temperature=0) == plain_greedy(model, prompt[-24:], 1)


PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5, 3, 5, 8, 9], list(range(40))]
GREEDY = Sampling(0.0)


@pytest.mark.parametrize("form", [explicit_attention] + [fused_attention] * HAS_FUSED)
def test_prompts_side_by_side_have_the_logits_they_have_alone(model, form):
    """Through prefill, decoding, and the rows' outgrowing the context at different times."""
    model.use_attention(form)
    batch, alone = Decoder(model, PROMPTS, 50), [Decoder(model, [p], 50) for p in PROMPTS]
    for tokens in torch.randint(0, 61, (49, len(PROMPTS))):
        assert_close(batch.logits, torch.cat([decoder.logits for decoder in alone]))
        batch.append(tokens)
        for decoder, token in zip(alone, tokens):
            decoder.append(token[None])


def test_prompts_side_by_side_continue_as_alone(model):
    rows = zip(*stream(model, PROMPTS, 30, [False] * 4, GREEDY))
    assert [list(row) for row in rows] == [
        minigpt.generate(model, prompt, 30, temperature=0) for prompt in PROMPTS
    ]


@pytest.mark.parametrize("prompts", [PROMPTS, [[3, 1, 4], [1, 5, 9]]])
def test_several_continuations_of_several_prompts(model, prompts):
    """Each prompt's rows stand together, with padding and without, also beyond the context."""
    rows = zip(*stream(model, prompts, 30, [False] * 2 * len(prompts), GREEDY))
    assert [list(row) for row in rows] == [
        minigpt.generate(model, prompt, 30, temperature=0) for prompt in prompts for _ in range(2)
    ]


def test_side_by_side_each_row_ends_by_itself(model):
    """One by a stop token, one by the reader; the others go on."""
    whole = [minigpt.generate(model, prompt, 20, temperature=0) for prompt in PROMPTS]
    stop = whole[2][6]
    ended, found = [False] * 4, [[], [], [], []]
    for number, row in enumerate(stream(model, PROMPTS, 20, ended, GREEDY, stop)):
        for texts, token in zip(found, row):
            texts += [] if token is None else [token]
        ended[1] = ended[1] or number == 2
    for number, (text, alone) in enumerate(zip(found, whole)):
        alone = alone[: alone.index(stop)] if stop in alone else alone
        assert text == (alone[:3] if number == 1 else alone)
    assert ended[1] and ended[2]


def test_side_by_side_the_same_seed_gives_the_same(model):
    first, again, other = (
        list(stream(model, PROMPTS, 9, [False] * 4, Sampling(), seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_side_by_side_what_is_drawn_does_not_depend_on_the_other_rows(model):
    """Shorter or longer than the others, or ended: the row's own draws stay."""
    other = [[7, 7, 7], [1], [2], [9] * 30]
    penalized = Sampling(1.0, repetition_penalty=1.5)
    for sampling in (Sampling(), Sampling(0.9, 20, 0.95), penalized):
        first = [row[1] for row in stream(model, PROMPTS, 30, [False] * 4, sampling, seed=2)]
        again = [row[1] for row in stream(model, other, 30, [False] * 4, sampling, seed=2)]
        ended = [True, False, False, True]
        alone = [row[1] for row in stream(model, other, 30, ended, sampling, seed=2)]
        assert first == again == alone and len(set(first)) > 7


def test_what_is_there_is_penalized(model):
    plain = minigpt.generate(model, [3], 40, temperature=0)
    varied = minigpt.generate(model, [3], 40, temperature=0, repetition_penalty=20.0)
    assert len(set(varied)) == 40 > len(set(plain)) and 3 not in varied


@pytest.mark.parametrize(
    "prompt", [torch.tensor([3, 1, 4]), np.array([3, 1, 4]), (3, 1, 4), [np.int64(3), 1, 4]]
)
def test_ids_are_taken_from_anything_that_holds_integers(model, prompt):
    expected = minigpt.generate(model, [3, 1, 4], 15, temperature=0)
    assert minigpt.generate(model, prompt, 15, temperature=0) == expected
    stops = torch.tensor([60, expected[9]])
    found = minigpt.generate(model, prompt, 15, temperature=0, stop_id=stops)
    assert found == expected[: expected.index(expected[9])]
    stops = [expected[9], expected[4]]
    first = min(map(expected.index, stops))
    assert minigpt.generate(model, prompt, 15, 0, stop_id=stops) == expected[:first]


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"prompt_ids": torch.tensor([[1], [2]])}, r"a Tensor of shape \(2, 1\)"),
        ({"prompt_ids": torch.tensor([1.0])}, "no list of ids but a Tensor"),
        ({"prompt_ids": torch.tensor(1)}, "no list of ids but a Tensor"),
        ({"prompt_ids": "text"}, "no list of ids but a str"),
        ({"prompt_ids": 5}, "no list of ids but a int"),
        ({"prompt_ids": None}, "no list of ids but a NoneType"),
        ({"prompt_ids": [[1, 2]]}, "no list of ids but a list"),
        ({"prompt_ids": [1, 61]}, "has the id 61, and the model's are 0 to 60"),
        ({"prompt_ids": [-1]}, "has the id -1"),
        ({"prompt_ids": []}, "no tokens"),
        ({"stop_id": "</s>"}, "the stop_id is no list of ids but a str"),
        ({"stop_id": 1.5}, "the stop_id is no list of ids"),
        ({"max_new_tokens": -1}, "number of new tokens is -1; it must be a whole number"),
        ({"max_new_tokens": 2.0}, "number of new tokens is 2.0"),
        ({"seed": -1}, "the seed is -1"),
        ({"seed": 10**20}, "the seed is 100000000000000000000"),
        ({"seed": "1"}, "the seed is '1'"),
        ({"top_k": 0}, "top-k is 0"),
    ],
)
def test_what_is_no_prompt_or_out_of_range_is_refused_in_a_sentence(model, wrong, said):
    with pytest.raises(UsageError, match=said):
        minigpt.generate(model, **{"prompt_ids": [1], "max_new_tokens": 3, **wrong})


def test_no_new_tokens_are_none(model):
    assert minigpt.generate(model, [1], 0) == []


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_a_model_whose_weights_are_no_numbers_says_so(model, temperature):
    model.blocks[1].mlp.up.bias.data[3] = float("nan")
    with pytest.raises(CheckpointError, match="logits are not numbers"):
        minigpt.generate(model, [1], 3, temperature)


def test_what_is_unusual_is_said():
    assert notes(10, 15, 24) == []
    assert "will outgrow" in notes(10, 16, 24)[0]
    assert "its last 24 are used" in notes(30, 1, 24)[0]


def test_a_model_in_training_is_left_in_training(model):
    model.train()
    minigpt.generate(model, [1], 3)
    assert model.training


def test_a_model_in_training_is_left_in_training_when_the_reader_stops_early(model):
    steps = stream(model.train(), [[1]], 10, [False], Sampling())
    next(steps)
    assert not model.training
    steps.close()
    assert model.training


def test_a_prompt_without_tokens_is_refused(model):
    with pytest.raises(UsageError, match="no tokens"):
        minigpt.generate(model, [], 3)


def test_a_bf16_model_generates(model):
    assert len(minigpt.generate(model.to(torch.bfloat16), [1], 5)) == 5


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch, "compile"), reason="this PyTorch has no torch.compile")
def test_a_compiled_step_gives_the_same_text(model):
    """Greedy, from short to beyond the context, so that prefill and decoding take turns."""
    plain, compiled = (
        list(stream(model, [[5, 6, 7]], 30, [False], GREEDY, step=step))
        for step in (decode_step, compiled_step())
    )
    assert plain == compiled
