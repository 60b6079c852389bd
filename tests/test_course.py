"""The course says what is so: its links, the lines it shows, its commands and its mistakes."""

import ast
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from functools import lru_cache
from importlib.util import module_from_spec, spec_from_file_location

import pytest

from tests.helpers.runs import ROOT

COURSE = ROOT / "docs" / "course"
CHAPTERS = sorted(COURSE.glob("[0-9][0-9]-*.md"))
PAGES = [COURSE / "README.md", *CHAPTERS]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
each_chapter = pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.name)
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
BREAK = re.compile(r"^python docs/course/breaks\.py ([a-z][a-z-]*)$", re.M)


def test_there_are_ten_chapters_and_all_are_listed():
    listed = [link for _, link in LINK.findall((COURSE / "README.md").read_text("utf-8"))]
    assert len(CHAPTERS) == 10
    assert [link for link in listed if re.match(r"\d", link)] == [c.name for c in CHAPTERS]


@each_page
def test_links_lead_somewhere(page):
    for _, link in LINK.findall(page.read_text("utf-8")):
        assert (page.parent / link).exists(), link


@lru_cache(maxsize=None)
def definitions(path):
    """{dotted name: its lines}, of the functions, classes, methods and constants of a module."""
    found, text = {}, path.read_text("utf-8")
    lines = [line.strip() for line in text.splitlines()]

    def look(nodes, prefix):
        for node in nodes:
            names = []
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names = [node.name]
                look(node.body, prefix + node.name + ".")
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            for name in names:
                found[prefix + name] = lines[node.lineno - 1 : node.end_lineno]

    look(ast.parse(text).body, "")
    return found


@each_chapter
def test_a_link_into_the_code_names_what_is_defined_there(page):
    text = page.read_text("utf-8")
    links = [(name, link) for name, link in LINK.findall(text) if "/minigpt/" in link]
    assert links
    for name, link in links:
        assert name.strip("`") in definitions((page.parent / link).resolve()), (name, link)


@each_chapter
def test_the_lines_shown_are_in_the_functions_named_before_them(page):
    """Since the fence before, or the heading."""
    parts = re.split(r"^```python\n(.*?)^```$|^## ", page.read_text("utf-8"), flags=re.M | re.S)
    shown = 0
    for before, lines in zip(parts[::2], parts[1::2]):
        links = [(name, link) for name, link in LINK.findall(before) if "/minigpt/" in link]
        sources = [
            definitions((page.parent / link).resolve())[name.strip("`")] for name, link in links
        ]
        for line in (lines or "").splitlines():
            assert any(line.strip() in source for source in sources), line
            shown += 1
    assert shown or "```python" not in page.read_text("utf-8")


def test_every_rung_is_a_chapters():
    commands = " ".join(
        re.search(r"^python -m pytest -s (.+)$", chapter.read_text("utf-8"), re.M).group(1)
        for chapter in CHAPTERS
    )
    rungs = {"tests/parity/" + path.name for path in (ROOT / "tests/parity").glob("test_[0-9]*.py")}
    assert sorted(commands.split()) == sorted(rungs)


@each_page
def test_the_tests_it_names_are_there(page):
    for name in re.findall(r"tests/[\w/]+\.py", page.read_text("utf-8")):
        assert (ROOT / name).is_file(), name


@each_chapter
def test_it_can_be_seen_by_day_and_by_night(page):
    for name in re.findall(r"!\[[^\]]+\]\((\S+\.svg)\)", page.read_text("utf-8")):
        text = (page.parent / name).read_text("utf-8")
        root = ET.fromstring(text)
        assert root.tag.endswith("svg") and root[0].tag.endswith("title")
        assert "prefers-color-scheme: dark" in text and "http" not in text.split("\n", 1)[1]


def breaks(*words, root=ROOT):
    """The finished process."""
    line = [sys.executable, str(root / "docs" / "course" / "breaks.py"), *words]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    here = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(line, env=here, text=True, cwd=str(root), **output)


def test_every_break_is_an_exercise():
    listed = [line.split()[0] for line in breaks("--list").stdout.splitlines()]
    exercises = [name for page in CHAPTERS for name in BREAK.findall(page.read_text("utf-8"))]
    assert len(listed) >= 10 and sorted(exercises) == sorted(listed)
    assert all(BREAK.search(page.read_text("utf-8")) for page in CHAPTERS)


def test_the_line_of_each_break_is_there_once():
    home = spec_from_file_location("breaks", COURSE / "breaks.py")
    module = module_from_spec(home)
    home.loader.exec_module(module)
    for one in module.BREAKS:
        text = (ROOT / one.file).read_text("utf-8")
        assert module.broken(text, one) != text
        assert (ROOT / one.rung).is_file()


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="breaks.py needs os.fork")


def state_of(directory):
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if "__pycache__" not in path.parts}


@needs_fork
@pytest.mark.slow
def test_no_rung_stays_green_under_its_break():
    """And nothing is written here: neither into the code nor beside the tests."""
    places = [ROOT / "minigpt", ROOT / "tests", COURSE]
    before = [state_of(place) for place in places]
    done = breaks("--all")
    assert done.returncode == 0, done.stdout
    assert "NOT SEEN" not in done.stdout and "are green without" in done.stdout
    assert [state_of(place) for place in places] == before


@pytest.fixture
def elsewhere(tmp_path):
    """A tree of which each break can change what it likes: the code, breaks.py, and no tests."""
    import shutil

    left_out = shutil.ignore_patterns("__pycache__")
    for name in ("minigpt", "docs/course"):
        shutil.copytree(str(ROOT / name), str(tmp_path / name), ignore=left_out)
    for name in ("setup.cfg", "pyproject.toml", "train.py"):
        shutil.copy(str(ROOT / name), str(tmp_path / name))
    (tmp_path / "tests" / "parity").mkdir(parents=True)
    return tmp_path


@needs_fork
@pytest.mark.parametrize("times", [0, 2])
def test_a_break_whose_line_is_not_there_once_is_out_of_date(elsewhere, times):
    path = elsewhere / "minigpt" / "model" / "gpt.py"
    line = "        x = self.final_norm(x)\n"
    text = path.read_text("utf-8")
    assert text.count(line) == 1
    path.write_text(text.replace(line, line * times), "utf-8")
    done = breaks("no-final-norm", root=elsewhere)
    assert done.returncode == 1
    assert "no-final-norm is out of date: its line is %d times" % times in done.stdout


@needs_fork
@pytest.mark.parametrize(
    "body",
    ["def test_it(): pass", "raise OSError", "def test_it(): spam()", "def test_it(): assert 0"],
)
def test_a_rung_that_stays_green_or_cannot_run_is_no_proof(elsewhere, body):
    rung = elsewhere / "tests" / "parity" / "test_06_logits.py"
    rung.write_text(body + "\n", "utf-8")
    golden = elsewhere / "tests" / "parity" / "test_golden_tensors.py"
    golden.write_text("def test_it(): pass\n", "utf-8")
    done = breaks("no-final-norm", root=elsewhere)
    assert (done.returncode == 0) == ("assert 0" in body), done.stdout
    assert ("NOT SEEN" in done.stdout) == ("assert 0" not in body)
