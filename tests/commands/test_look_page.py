"""The page of `look` in a browser: what is chosen by a click or a key is what is then shown, with
the numbers that were computed, no word in the console, and nothing asked for but the file.
"""

import base64
import json
import re

import pytest
import torch

from minigpt.__main__ import command
from minigpt.checkpoint.manifest import write_checkpoint
from minigpt.checkpoint.model_files import save_model
from minigpt.commands.cli import run
from minigpt.commands.look_taps import look_inside
from minigpt.data.tokenizer import load_tokenizer
from minigpt.model.gpt import GPT, GPTConfig
from tests.helpers.browser import browser, why_not

LAYERS, HEADS = 4, 3
# The title would be another if any of it were taken for HTML, and so would the number of tokens.
PROMPT = "a</script><script>document.title = 1</script><img src='x'>\n\t\x1b\u202e 끝<!--"

missing = why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing), reason=missing)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The page's path, what it is to show, and the tokenizer."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(3)
    known = load_tokenizer("bytes")
    model = GPT(GPTConfig(257, 128, LAYERS, HEADS, 24, init_std=0.4)).eval()
    write_checkpoint(folder / "c", lambda partial: save_model(partial, model), known)
    words = ["look", "--checkpoint", folder / "c", "--out", folder / "a.html", "--prompt", PROMPT]
    assert run(command, [*map(str, words), "--last", "40"]) == 0
    return folder / "a.html", look_inside(model, known.encode(PROMPT), 40)


@pytest.fixture(scope="module")
def window(made, tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as one:
        one.look_like(1200)
        yield one


@pytest.fixture()
def page(window, made):
    """The page, opened anew; afterwards, that there was no complaint, and no request but one."""
    window.open(made[0])
    yield window
    assert window.complaints() == []
    assert window.requests() == [made[0].as_uri()]


def chosen(page):
    """(token, layer, head), from 0, as the page says it."""
    words = r"Token (\d+) of 40: .* · layer (\d+) of 4 · head (\d+) of 3"
    return tuple(int(n) - 1 for n in re.fullmatch(words, page.text("#state")).groups())


def number(text):
    """(value, half of its last digit) of `12.3%` or `1.23`."""
    digits = text.replace("%", "").replace("<", "").replace(",", "")
    unit = 10.0 ** -len(digits.partition(".")[2])
    share = 100 if text.endswith("%") else 1
    return float(digits) / share, unit / share


def says(text, exact):
    value, unit = number(text)
    if text.startswith("<"):
        return 0 <= exact <= 1.1 * value
    return abs(value - exact) <= 0.6 * unit + 1e-3 * abs(exact)


def check_shown(page, inside):
    """That all numbers in sight are those of what is chosen."""
    token, layer, head = chosen(page)
    bars = "return [...document.querySelectorAll(arguments[0] + ' .number')].map(e => e.innerText)"
    for text, p in zip(page.run(bars, "#likeliest"), inside.lens[-1].probabilities[token]):
        assert says(text, p)
    units = page.run("return [...document.querySelectorAll('#active li')].map(e => e.innerText)")
    done = inside.layers[layer]
    assert len(units) == 8
    for text, unit, value in zip(units, done.units[token], done.activations[token]):
        name, shown = text.split("\n")
        assert name == "unit %d" % unit and says(shown, value)

    texts = "return [...document.querySelectorAll('#guesses small')].map(e => e.textContent)"
    guesses = [p for guess in inside.lens for p in guess.probabilities[token][:6]]
    shown = page.run(texts)
    assert len(shown) == len(guesses) and all(map(says, shown, guesses))

    assert page.text("#head-title") == "Layer %d, head %d" % (layer + 1, head + 1)
    weights = done.attention[head, token]
    titles = page.run("return [...document.querySelectorAll('#looked span')].map(e => e.title)")
    assert says(titles[0].split()[1], weights[0])  # together, of what is earlier
    for title, weight in zip(titles[1 : token + 2], weights[1:]):
        assert says(title.split(" · ")[0], weight)
    assert titles[token + 2 :] == ["comes later: hidden"] * (39 - token)
    norms = re.findall(r"[\d.]+(?=[,;.])", page.text("#norms-say").partition(":")[2])
    exact = done.attended[token], done.written[token], inside.norms[layer + 1][token]
    assert len(norms) == 3 and all(map(says, norms, exact))


def test_it_opens_with_the_last_token_chosen(page, made):
    assert chosen(page) == (39, 2, 0)
    assert page.run("return document.title") == "Inside a GPT"
    assert page.run("return document.querySelectorAll('#tokens button').length") == 40
    assert page.run("return document.querySelectorAll('img, script').length") == 2  # its own
    assert "of which the last 40 are shown" in page.text("#notes")
    assert page.text("#real") == "The prompt ends here: what comes next is open."
    check_shown(page, made[1])


def test_a_token_a_head_and_a_layer_are_chosen_by_clicks(page, made):
    page.click("#tokens button:nth-child(8)")
    assert chosen(page) == (7, 2, 0)
    check_shown(page, made[1])
    rank, bits = made[1].lens[-1].ranks[7], made[1].lens[-1].bits[7]
    assert "guess number %d:" % rank in page.text("#real")
    assert says(re.search(r"([\d.]+) bits", page.text("#real"))[1], bits)

    side = page.run("return gridSizes.cell")
    page.click_at("#heads", 26 + 2.4 * side, 20 + 1.4 * side)
    assert chosen(page) == (7, 1, 2)
    check_shown(page, made[1])
    page.click("#guesses tbody tr:nth-child(5) th")
    assert chosen(page) == (7, 3, 2)
    check_shown(page, made[1])

    side = page.run("return document.querySelector('#map').clientWidth") / 40
    page.click_at("#map", 4.5 * side, 20.5 * side)  # what the 21st gives to the 5th
    assert chosen(page) == (20, 3, 2)
    assert says(page.text("#cell").split()[-1], made[1].layers[3].attention[2, 20, 1 + 4])


def test_keys_move_the_token_the_layer_and_the_head(page, made):
    page.press("Home", "Right", "Right", "Right", "Left")
    assert chosen(page) == (2, 2, 0)
    page.press("k", "l", "l", "h", "m")
    assert chosen(page) == (2, 1, 1)
    assert page.run("return document.getElementById('all-rows').ariaPressed") == "true"
    check_shown(page, made[1])
    page.press("End", *["j"] * 9, *["l"] * 9, "Right")
    assert chosen(page) == (39, 3, 2)  # no further than there is
    page.press("Home", "Left", *["k"] * 9, *["h"] * 9)
    assert chosen(page) == (0, 0, 0)
    check_shown(page, made[1])


def test_the_focus_is_seen_and_follows_the_token(page, made):
    page.press("Tab", "Left", "Left")
    focused = "const e = document.activeElement;"
    focused += "return [e.ariaSelected, getComputedStyle(e).outlineStyle]"
    assert chosen(page)[0] == 37
    assert page.run(focused) == ["true", "solid"]


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen_and_the_colours_follow_it(page, width, scheme):
    page.look_like(width, scheme=scheme)
    assert page.run("return document.documentElement.scrollWidth") == width
    paper = page.run("return getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", paper))) / 3
    assert light > 230 if scheme == "light" else light < 40
    dots = """const c = document.getElementById('heads');
        const pixels = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        return [...new Set(Array.from(new Uint32Array(pixels.buffer)))].length"""
    assert page.run(dots) > 5  # something is drawn
    page.look_like(1200)


def test_a_page_of_the_widest_kind_is_quick_enough(window, made, tmp_path):
    """As many heads as 13B has: a key's effect is there within a second or two."""
    text = made[0].read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    for name in ("attention", "layers"):
        data[name] = [data[name][n % LAYERS] for n in range(40)]
    data["attention"] = [_wider(one, data) for one in data["attention"]]
    for name in ("norms", "lens"):
        data[name] = [data[name][n % LAYERS] for n in range(41)]
    data["model"].update(layers=40, heads=39)
    start, _, rest = text.partition('id="data">')
    end = rest.partition("</script>")[2]
    page = tmp_path / "wide.html"
    values = json.dumps(data).replace("<", "\\u003c")
    page.write_text(start + 'id="data">' + values + "</script>" + end)
    window.open(page)
    script = "const t = performance.now(); choose({all: true, token: 5, layer: 30, head: 38});"
    took = window.run(script + "return performance.now() - t")
    assert took < 5000  # milliseconds
    assert "layer 31 of 40 · head 39 of 39" in window.text("#state")
    for width in (390, 1200):  # there the pictures are wider, and scroll in their place
        window.look_like(width)
        assert window.run("return document.documentElement.scrollWidth") == width


def _wider(packed, data):
    """The attention of 3 heads, 13 times."""
    return base64.b64encode(base64.b64decode(packed) * 13).decode()
