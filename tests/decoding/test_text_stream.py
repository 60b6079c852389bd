"""Text comes out whole: no half characters, no part of a stop string, and nothing is lost."""

from hypothesis import given
from hypothesis import strategies as st

from minigpt.data.tokenizer import BytesTokenizer
from minigpt.decoding.generate import TextStream


def pieces(text, stop=(), size=1):
    data, out, stream = text.encode(), [], TextStream(stop)
    for start in range(0, len(data), size):
        out.append(stream.feed(data[start : start + size]))
        if stream.stopped:
            break
    return [*out, stream.finish()]


def test_a_character_is_held_back_until_whole():
    assert pieces("a€b") == ["a", "", "", "€", "b", ""]


def test_half_a_character_at_the_end_is_the_replacement_character():
    stream = TextStream()
    assert stream.feed("€".encode()[:2]) == ""
    assert stream.finish() == "\ufffd"


def test_a_stop_string_ends_the_text_and_is_not_shown():
    assert "".join(pieces("one\ntwo\n\nthree", ["\n\n"])) == "one\ntwo"


def test_what_might_become_a_stop_string_is_held_back():
    stream = TextStream(["</s>"])
    assert [stream.feed(c.encode()) for c in "a</x"] == ["a", "", "", "</x"]


def test_what_was_held_back_comes_at_the_end():
    stream = TextStream(["</s>"])
    assert stream.feed(b"a</s") == "a"
    assert stream.finish() == "</s"


TEXT = st.text("ab€", max_size=30)
STOPS = st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3)


@given(TEXT, STOPS, st.integers(1, 5))
def test_the_text_up_to_the_first_stop_however_it_comes(text, stop, size):
    """For any text, stop strings and token size: all of the text, and no stop string."""
    shown = "".join(pieces(text, stop, size))
    assert shown == "".join(pieces(text, stop, 1))  # overlapping stops too: the first that is whole
    assert text.startswith(shown)
    assert not any(s in shown for s in stop)
    if any(s in text for s in stop):  # all that comes before a stop string has been shown
        assert any(text.startswith(s, len(shown)) for s in stop)
    else:
        assert shown == text


@given(st.text(max_size=40))
def test_the_bytes_tokenizer_streams_what_it_decodes(text):
    tokenizer, stream = BytesTokenizer(), TextStream()
    shown = [stream.feed(tokenizer.token_bytes(i)) for i in tokenizer.encode(text)]
    assert "".join(shown) + stream.finish() == tokenizer.decode(tokenizer.encode(text)) == text
