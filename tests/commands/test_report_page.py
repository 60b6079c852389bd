"""The page of `report`: what it holds is what metrics.jsonl says, it takes the place of nothing but
an earlier page, and in a browser the values at a step are those of that step.
"""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import chain

import pytest

from minigpt.__main__ import command
from minigpt.base.errors import UsageError
from minigpt.commands import report as report_module
from minigpt.commands.cli import run
from minigpt.training.claim import require_startable
from minigpt.training.history import MOST, History
from tests.helpers.browser import browser, why_not
from tests.helpers.warm import warm

HOSTILE = "a</script><script>document.title = 1<\\!--\u202e\x1b[31m 끝"
missing = why_not()


def line(step, loss=3.0, **more):
    speeds = {"tokens_per_second": 1000.0 + step, "step_seconds": 0.5}
    if "warmup_seconds" in more:
        speeds = {}
    return {
        "step": step,
        "loss": loss,
        "grad_norm": 1.0 / step,
        "lr": 1e-4 * step,
        **speeds,
        **more,
    }


def checked(step, loss):
    return {"step": step, "val_loss": loss, "val_bits_per_byte": loss / 2}


def run_of(path, records, settings='data = "stdlib"\n', samples=()):
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    (path / "config.toml").write_text(settings)
    text = "".join("## step %d\n\n```\n%s\n```\n\n" % one for one in samples)
    if samples:
        (path / "samples.md").write_text(text, encoding="utf-8")
    return path


def usual(steps=50, **more):
    first = [line(1, 5.0, warmup_seconds=2.0)]
    rest = [[line(step, 4.0 - step / 100, **more)] for step in range(10, steps + 1, 10)]
    for step in (20, steps):
        rest[step // 10 - 1].append(checked(step, 4.1 - step / 100))
    return [*first, *chain.from_iterable(rest)]


def page(out):
    text = out.read_text(encoding="utf-8")
    assert text.count("<script") == 2 and text.count("</script>") == 2
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])


def points(records, key):
    return [[one["step"], pytest.approx(one[key], rel=1e-5)] for one in records if key in one]


def report(*words, code=0):
    assert run(command, ["report", *map(str, words)]) == code


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """matplotlib takes seconds; that there is a picture is tried in test_report.py."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def test_the_page_says_what_was_logged(tmp_path, capsys):
    records = usual(mfu=0.4, peak_memory=10**9)
    one = run_of(tmp_path / "r", records, "lr = 0.1\nseed = 3\n", [(20, "def f"), (50, "```\n")])
    with (one / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "loss": 2.')
    report(one)
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith(f"page     {one / 'report.html'} (")
    assert said[-1] == f"plot     pip install matplotlib, then: python -m minigpt report {one}"
    data = page(one / "report.html")
    (drawn,) = data["runs"]
    for key in drawn["series"]:
        assert drawn["series"][key] == points(records, key), key
    assert all(drawn["series"].values())
    assert drawn["samples"] == (one / "samples.md").read_text() and drawn["wrong"] == []
    assert ["best loss", "3.6000, 1.800 bits per byte, at 50"] in data["table"]
    assert data["settings"] == [["lr", "0.1"], ["seed", "3"]] and data["again"] == 0


def test_several_runs_are_in_one_page_with_the_table_that_is_printed(tmp_path, capsys):
    first = run_of(tmp_path / "a", usual(), "lr = 0.1\nseed = 3\n")
    # As torchrun writes it: one process for all, with the speed of each device.
    second = run_of(tmp_path / "b", usual(90, tokens_per_second_per_device=9.0), "lr = 0.2\n")
    report(first, second)
    printed = capsys.readouterr().out
    data = page(first / "compared.html")
    assert not (second / "compared.html").exists() and not (first / "report.html").exists()
    assert [one["name"] for one in data["runs"]] == [str(first), str(second)]
    for place, steps in enumerate((50, 90)):
        for key, found in data["runs"][place]["series"].items():
            assert found == points(usual(steps), key)
    assert data["settings"] == [["lr", "0.1", "0.2"], ["seed", "3", "-"]]
    for row in data["table"]:
        assert all(cell in printed for cell in row)


def test_of_steps_that_were_done_again_the_later_count(tmp_path):
    before = [*usual(50), line(60, 9.0), checked(60, 9.0)]
    after = [line(41, 3.9, warmup_seconds=1.0), line(50, 3.8), line(50, 3.7), checked(55, 3.6)]
    report(run_of(tmp_path / "r", [*before, *after]))
    series = page(tmp_path / "r" / "report.html")["runs"][0]["series"]
    kept = [one for one in before if one["step"] < 41] + [after[0], *after[2:]]
    for key in series:
        assert series[key] == points(kept, key), key


def test_one_line_is_enough_and_none_is_not(tmp_path, capsys):
    report(run_of(tmp_path / "one", [line(1, 5.0, warmup_seconds=2.0)]))
    assert page(tmp_path / "one" / "report.html")["runs"][0]["series"]["loss"] == [[1, 5.0]]
    report(run_of(tmp_path / "none", []), code=1)
    assert "no logged step yet" in capsys.readouterr().err
    assert not (tmp_path / "none" / "report.html").exists()


def test_what_is_no_number_is_named_and_not_drawn(tmp_path, capsys):
    records = [*usual(50), line(60, float("nan"), mfu=float("inf")), line(70, 2.0)]
    one = run_of(tmp_path / "r", [*records, *[line(80, -float("inf"))] * 200])
    report(one)
    assert "2.0000 at last" in capsys.readouterr().out
    drawn = page(one / "report.html")["runs"][0]
    finite = [one for one in records if one["loss" if "loss" in one else "step"] > 0]
    assert drawn["series"]["loss"] == points(finite, "loss")
    assert drawn["wrong"] == [[80, "loss", "-inf"]] * 100
    assert History(run_of(tmp_path / "s", records)).wrong == [
        (60, "loss", "nan"), (60, "mfu", "inf"),
    ]  # fmt: skip


def test_a_long_run_is_thinned_and_keeps_its_extremes(tmp_path):
    """Of ten times as many lines as are kept, and in 20 runs at once, the page stays small."""
    lines = [json.dumps(line(n, 3.0 + (n * 7919 % 1000) / 1e4)) for n in range(1, 10 * MOST)]
    lines[777] = json.dumps(line(778, 9.5))
    lines[8888] = json.dumps(line(8889, 0.25))
    one = run_of(tmp_path / "r", [])
    (one / "metrics.jsonl").write_text("\n".join(lines))
    history = History(one)
    losses = history.points["loss"]
    assert history.width == 10 and len(losses) <= 2 * MOST
    assert (778, 9.5) in losses and (8889, 0.25) in losses
    assert [p[0] for p in losses] == sorted({p[0] for p in losses})
    of_part = [json.loads(text) for text in lines[5000:5010]]
    greatest = max(of_part, key=lambda record: record["loss"])
    assert (greatest["step"], greatest["loss"]) in losses
    assert history.steps[0]["step"] == 1 and history.steps[-1]["step"] == 10 * MOST - 1
    assert len(history.speeds) == len(lines)
    (one / "samples.md").write_text("\x00" * 10**6)
    small = [report_module._drawn(History(one, 400), 3000)] * 20
    assert len(json.dumps(small)) < 2.5e6
    assert len(json.dumps(report_module._drawn(history, 60_000))) < 1.5e6


@pytest.mark.parametrize("name", ["report.html", "compared.html"])
@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_what_a_person_has_put_there_stays(tmp_path, capsys, name, kind):
    runs = [run_of(tmp_path / "a", usual()), run_of(tmp_path / "b", usual())]
    runs = runs[: 1 if name == "report.html" else 2]
    mine, there = tmp_path / "mine", runs[0] / name
    mine.write_text("mine")
    if kind == "file":
        there.write_text("mine")
    elif kind == "link":
        there.symlink_to(mine)
    else:
        there.mkdir()
    report(*runs)  # the summary is what was asked for
    assert (
        f"page     not shown: {there} exists and is no page of report's" in capsys.readouterr().out
    )
    assert there.is_dir() if kind == "directory" else there.read_text() == "mine"
    assert mine.read_text() == "mine" and there.is_symlink() == (kind == "link")
    report(*runs, "--watch", code=UsageError.exit_code)


def test_an_earlier_page_gives_way(tmp_path):
    one = run_of(tmp_path / "r", usual(50))
    report(one)
    with (one / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line(60, 1.5)) + "\n")
    report(one)
    assert page(one / "report.html")["runs"][0]["series"]["loss"][-1] == [60, 1.5]
    assert {path.name for path in one.iterdir()} == {"config.toml", "metrics.jsonl", "report.html"}


def test_a_run_with_a_page_and_no_checkpoint_may_be_started_again(tmp_path):
    runs = [run_of(tmp_path / "a", usual()), run_of(tmp_path / "b", usual())]
    (runs[0] / "lock").write_text("minigpt, process 1")
    report(runs[0])
    report(*runs)
    require_startable(runs[0])
    (runs[0] / "mine.html").write_text("")
    with pytest.raises(UsageError, match="not an empty directory"):
        require_startable(runs[0])


def test_a_directory_of_runs_is_not_watched(tmp_path, capsys):
    run_of(tmp_path / "runs" / "a", usual())
    report(tmp_path / "runs", "--watch", code=2)
    assert "is a directory of runs; name those to watch" in capsys.readouterr().err


def test_a_run_that_is_over_is_drawn_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report_module, "_PAUSE", 1e9)
    one = run_of(tmp_path / "r", usual())
    (one / "lock").write_text("")  # which nobody holds
    report(one, "--watch")
    assert page(one / "report.html")["again"] == 0
    assert "it follows" in capsys.readouterr().out


@pytest.fixture()
def watched(tmp_path):
    """A run that somebody holds, as training does, and the command that follows it."""
    one = run_of(tmp_path / "r", [])
    (one / "lock").write_text("")
    lock = os.open(str(one / "lock"), os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    start = "import sys; sys.modules['matplotlib'] = None\n"
    start += "from minigpt.commands import report; report._PAUSE = 0.2\n"
    start += "from minigpt.__main__ import main; sys.exit(main())"
    (tmp_path / "start.py").write_text(start)
    words = warm(tmp_path / "start.py", "report", one, "--watch")
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    yield one, process, lock
    process.kill()
    process.communicate()
    os.close(lock)


def until(true, seconds=60):
    for _ in range(20 * seconds):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("not within %d s" % seconds)


def append(one, text):
    with (one / "metrics.jsonl").open("a") as file:
        file.write(text)


def drawn(one, key="loss"):
    return page(one / "report.html")["runs"][0]["series"][key]


@pytest.mark.slow
@pytest.mark.parametrize("end", ["Ctrl-C", "over"])
def test_a_run_is_followed_to_its_end(watched, end):
    one, process, lock = watched
    until((one / "report.html").exists)  # before the first step too
    assert drawn(one) == [] and page(one / "report.html")["again"] == 0.2
    text = "".join(json.dumps(record) + "\n" for record in usual(50))
    append(one, text[:-30])
    until(lambda: drawn(one)[-1:] == [[50, 3.5]])
    append(one, text[-30:])
    until(lambda: drawn(one, "val_loss")[-1][0] == 50)
    assert process.poll() is None
    if end == "Ctrl-C":
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    else:
        append(one, json.dumps(line(60)) + "\n")
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert process.wait(60) == 0
        assert drawn(one)[-1][0] == 60
    assert page(one / "report.html")["again"] == 0


# In a browser ------------------------------------------------------------------------------------

in_browser = pytest.mark.skipif(bool(missing), reason=missing)


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as one:
        one.look_like(1200)
        yield one


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two runs with all that may be shown: names, samples, spikes, a resumption, no numbers."""
    folder = tmp_path_factory.mktemp("pair")
    records = [line(1, 5.0, warmup_seconds=1.0)]
    records += [line(n, 3.0 + n % 3 / 10 + 2.0 * (n == 300), mfu=0.4) for n in range(10, 401, 10)]
    records[20] = line(200, float("nan"))
    records += [line(410, 3.0, warmup_seconds=1.0), checked(410, 3.25)]
    samples = [(100, "at a hundred " + HOSTILE), (400, "{{js}}<img src=x>")]
    first = run_of(folder / HOSTILE.replace("/", "_"), records, "lr = 0.1\nseed = 3\n", samples)
    second = run_of(folder / "b", usual(90), "lr = 0.2\nseed = 3\n")
    return first, second


@pytest.fixture()
def opened(window):
    """Opens a page; afterwards, that there was no complaint, and no request but for the file."""
    files = []

    def open_page(out):
        files.append(out.as_uri())
        window.open(out)
        return window

    yield open_page
    assert window.complaints() == []
    asked = set(window.requests())
    assert asked == set(files)


def values(window):
    """The values in sight of a single run by their keys."""
    pairs = "[...document.querySelectorAll('.pairs b')].map(e => [e.dataset.key, e.innerText])"
    found = window.run("return " + pairs)
    return {key: float(text.replace(",", "")) for key, text in found if text != "\u2013"}


def row(window, number):
    cells = "return [...document.querySelectorAll('#values tbody tr')[arguments[0]].cells]"
    return window.run(cells + ".slice(1).map(e => e.innerText)", number)


@in_browser
@pytest.mark.slow
def test_keys_and_the_pointer_show_the_values_of_a_step(opened, pair):
    report(pair[0])
    records = History(pair[0])
    window = opened(pair[0] / "report.html")
    assert window.text("#state") == "Step 410, the last"
    for keys, step in (["Home"], 1), (["Right"] * 3, 30), (["End", "Left"], 400):
        window.press(*keys)
        assert window.text("#state") == "Step %d" % step
        shown = values(window)
        for key in ("loss", "grad_norm", "lr", "tokens_per_second"):
            known = [value for at, value in records.points[key] if at <= step]
            assert (key in shown) == bool(known)
            if known:
                assert shown[key] == pytest.approx(known[-1], rel=1e-2, abs=6e-5), key
    assert window.text("#samples pre") == "{{js}}<img src=x>"
    box = "const b = document.getElementById('norm').getBoundingClientRect(); return b.width"
    left, right, width = 62, 12, window.run(box)
    window.click_at("#norm", left + (width - left - right) * 99 / 409, 80)
    assert window.text("#state") == "Step 100"
    assert values(window)["grad_norm"] == pytest.approx(0.01)
    dot = "const c = document.querySelector('#loss .cursor circle');"
    spot = window.run(dot + "return [c.getAttribute('cx'), c.getAttribute('cy')].map(Number)")
    scales = "return [CHARTS[0].x(100), CHARTS[0].y(arguments[0])]"
    assert spot == pytest.approx(window.run(scales, dict(records.points["loss"])[100]))
    window.press("l")
    assert window.run("return at('logarithmic').ariaPressed") == "true"


@in_browser
@pytest.mark.slow
def test_hostile_names_samples_and_numbers_are_only_shown(opened, pair):
    report(*pair)
    window = opened(pair[0] / "compared.html")
    assert window.run("return document.querySelectorAll('script, img').length") == 2
    assert "a<_script>" in window.run("return document.title")
    assert "\\u{202e}\\u{1b}[31m 끝" in window.text("h1")
    said = window.text("#marks")
    assert "step 200: loss was nan, which is no number" in said
    assert "step 300: loss 5.0000, a spike: it was 3.0000 to 3.2000 before" in said
    assert "step 410: the run was resumed before it" in said and said.count("\n") == 2
    window.click("#marks li:nth-child(2) button")
    assert window.text("#state") == "Step 300"
    assert row(window, 0)[0] == "5.0000" and row(window, 1)[0] == "ended"
    assert window.text("#samples pre").startswith("at a hundred a</script><script>")
    window.click("#sample-steps button:nth-child(2)")
    assert window.text("#state") == "Step 400"
    assert window.text("#settings tbody") == "lr\t0.1\t0.2"  # what differs comes first
    assert window.text("#same summary") == "1 settings that are the same in all"
    paths = "return document.querySelectorAll('#loss path').length"
    assert window.run(paths) == 3  # and of the first one's validation a dot
    window.click("#values tr:nth-child(2) button")
    assert window.run(paths) == 1


@in_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_the_screen_and_follows_its_colours(opened, pair, width, scheme):
    report(*pair)
    window = opened(pair[0] / "compared.html")
    window.look_like(width, scheme=scheme)
    assert window.run("return document.documentElement.scrollWidth") == width
    paper = window.run("return getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", paper))) / 3
    assert light > 230 if scheme == "light" else light < 40
    window.look_like(1200)


@in_browser
@pytest.mark.slow
def test_a_page_that_follows_shows_a_new_line_and_keeps_what_is_chosen(opened, watched):
    one, process, _ = watched
    append(one, "".join(json.dumps(record) + "\n" for record in usual(50)))
    until(lambda: (one / "report.html").exists() and len(drawn(one)) == 6)
    window = opened(one / "report.html")
    window.look_like(390)
    assert window.text("#state") == "Step 50, the last"
    append(one, json.dumps(line(60, 1.25)) + "\n" + '{"step": 70')
    until(lambda: window.text("#state") == "Step 60, the last")  # the last stays the last
    assert values(window)["loss"] == 1.25
    window.press("Home", "Right")
    window.run("window.scrollTo(0, 300)")
    append(one, ', "loss": 1.0}\n')
    until(lambda: window.run("return steps.length") == 8)
    assert window.text("#state") == "Step 10" and window.run("return window.scrollY") == 300
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    until(lambda: window.run("return data.again") == 0)
    assert "opened anew" not in window.text("#about")
    window.look_like(1200)
