"""Exercises from the standard library: how many, whether they are whole, and how they are cut."""

import ast
from itertools import islice

import pytest

from minigpt.data.datasets import open_datasets, split_datasets
from minigpt.data.records import (
    FUNCTIONS,
    LeftOut,
    Record,
    functions,
    library_functions,
    read_records,
    render,
)
from minigpt.data.template import TEMPLATES
from minigpt.data.tokenizer import load_tokenizer

BYTES = load_tokenizer("bytes")


@pytest.fixture(scope="module")
def exercises():
    return list(library_functions())


def test_there_are_thousands(exercises):
    assert len(exercises) > 4000
    assert len({exercise.file for exercise in exercises}) > 200


def test_each_is_there_once(exercises):
    assert len({(exercise.head, exercise.body) for exercise in exercises}) == len(exercises)
    assert len({exercise.where for exercise in exercises}) == len(exercises)


def test_nearly_all_are_whole_functions_again(exercises):
    """All of them where this was written; another interpreter's library may hold a surprise."""
    whole = 0
    for exercise in exercises:
        try:
            (function,) = ast.parse(exercise.head + "\n" + exercise.body).body
        except (SyntaxError, ValueError):
            continue
        documented = ast.get_docstring(function) is not None and len(function.body) > 1
        end = exercise.head.count("\n") + 1
        whole += documented and function.body[0].end_lineno == end
    assert whole >= 0.999 * len(exercises)


def test_they_are_the_same_each_time(exercises):
    assert list(islice(library_functions(), 500)) == exercises[:500]


def test_training_and_validation_share_no_file(exercises):
    """An example does not say which record it was, so each record has its file for an answer."""
    first = next(read_records(FUNCTIONS, None, LeftOut()))
    assert first.key == exercises[0].file
    template = TEMPLATES["instruct"]
    marked = [Record(e.where, e.file, (("", e.file),)) for e in exercises]
    rendered = ((record.where, render(record, template, BYTES)) for record in marked)
    datasets = split_datasets(rendered, template, BYTES, 200, True, LeftOut())
    train, validation = (
        {BYTES.decode(e.tokens[e.asked :]) for e in dataset.examples} for dataset in datasets
    )
    assert train.isdisjoint(validation)
    assert train | validation == {exercise.file for exercise in exercises}
    assert 0.005 < len(datasets[1].examples) / len(exercises) < 0.1


def test_as_training_data_with_the_long_ones_counted():
    opened = open_datasets(FUNCTIONS, BYTES, 512)
    _, note = opened.notes
    assert note.startswith("left out ") and "longer than --block-size 512 (" in note
    prompt = BYTES.decode(opened.prompt)
    assert prompt.startswith("[INST] ") and prompt.endswith(" [/INST]\n")


def exercise(source):
    (found,) = functions(source, "file.py")
    return found


DOC = '"""Says what it does, at length."""'


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_method_is_cut_and_moved_to_the_margin(newline):
    lines = [
        "class A:",
        "\f",
        "    @property",
        "    async def f(self,",
        "          x=1):",
        "        " + DOC,
        "",
        "        # why",
        "        text = '''",
        "   inside",
        "        '''",
        "        return text  # end",
        "",
        "    y = 2",
    ]
    found = exercise(newline.join(lines))
    assert found.where == "file.py:4"
    assert found.head == "@property\nasync def f(self,\n      x=1):\n    " + DOC
    assert found.body == "    # why\n    text = '''\n   inside\n    '''\n    return text  # end"


def test_tabs_are_taken_off_too():
    found = exercise("class A:\n\tdef f(self):\n\t\t%s\n\t\treturn 1\n" % DOC)
    assert found.head == "def f(self):\n\t" + DOC and found.body == "\treturn 1"


def test_a_function_in_a_function_is_part_of_it():
    inner = "    def g():\n        %s\n        return 2\n" % DOC
    found = exercise("def f():\n    %s\n%s    return g\n" % (DOC, inner))
    assert found.head.startswith("def f") and "def g" in found.body


def test_those_behind_conditions_are_found():
    function = "def f():\n    %s\n    return 1\n" % DOC
    indented = "    " + function.replace("\n", "\n    ").rstrip() + "\n"
    source = "if x:\n%selse:\n%stry:\n    y\nexcept Z:\n%s" % (
        indented, indented.replace("1", "2"), indented.replace("1", "3"))  # fmt: skip
    assert [e.body for e in functions(source, "")] == ["    return %d" % n for n in (1, 2, 3)]


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    return 1\n",
        "def f():\n    %s\n" % DOC,
        "def f(): %s; return 1\n" % DOC,
        "def f():\n    '''Short.'''\n    return 1\n",
        "def f():\n    %s\n    pass\n" % DOC,
        "def f():\n    %s\n    raise NotImplementedError\n" % DOC,
        "def f():\n    b'''Bytes are no documentation, ever.'''\n    return 1\n",
        "def f(:\n",
        "\0",
        "",
    ],
)
def test_what_teaches_nothing_is_passed_over(source):
    assert list(functions(source, "file.py")) == []
