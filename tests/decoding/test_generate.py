"""Generation: equal to the plain loop without a cache, seeded, and beyond the context."""

import pytest
import torch

import minigpt
from minigpt.base.errors import UsageError
from minigpt.decoding.generate import Decoder, Sampling, compiled_step, decode_step, notes, stream
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
