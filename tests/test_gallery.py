"""The gallery shows what a run wrote, and before that what its weights would have written."""

import sys

import pytest

from examples import gallery
from tests.helpers.runs import corpus
from tests.helpers.tuning import SETTINGS, run_to_the_end, trainer_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps too small to change anything, with a sample of each."""
    tmp_path = tmp_path_factory.mktemp("gallery")
    flags = {**SETTINGS, "data": str(corpus(tmp_path / "corpus")), "out": str(tmp_path / "run")}
    flags.update(steps=2, block_size=32, lr=1e-30, sample_every=1, eval_every=0)
    return run_to_the_end(trainer_of(**flags))


def shown(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["gallery.py", *map(str, words)])
    answer = gallery.main()
    return answer, capsys.readouterr().out


def test_the_sample_before_the_first_step_is_that_of_the_same_weights(run, monkeypatch, capsys):
    found = gallery.samples(run)
    assert sorted(found) == [1, 2] and gallery.before_the_first_step(run) == found[1]
    capsys.readouterr()
    answer, out = shown(monkeypatch, capsys, run, "--steps", 0, 2)
    zero, two = out.splitlines()[2:]
    assert answer == 0 and zero.startswith("| 0 | ") and two.startswith("| 2 | ")
    assert zero.split("|")[3] == two.split("|")[3] == " %s " % gallery.cell(found[1])


def test_what_is_not_there_is_said(run, tmp_path, monkeypatch, capsys):
    answer, _ = shown(monkeypatch, capsys, run, "--steps", 7)
    assert answer == "%s has no sample of step 7, but of: [1, 2]" % run
    answer, _ = shown(monkeypatch, capsys, tmp_path)
    assert "has no samples.md" in answer


def test_nothing_of_a_sample_is_markdown_or_html():
    assert gallery.cell("a | <b>\n\n*c*") == "<pre>a &#124; &#60;b&#62;<br>&#42;c&#42;</pre>"
