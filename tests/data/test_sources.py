"""What people name as data: which files are read, which validate, what is said of the others."""

import json
import os

import numpy as np
import pytest

from minigpt.base.errors import DataError, UsageError
from minigpt.commands.prepare import PrepareConfig, prepare
from minigpt.data.corpus import TRAIN, VALIDATION, find_source
from minigpt.data.datasets import open_datasets
from minigpt.data.tokenizer import load_tokenizer, reading_marks
from minigpt.data.windows import Passes

BYTES = load_tokenizer("bytes")
TEXT = "".join("line %d of the text\n" % n for n in range(9000))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path / "d")


def write(**files):
    """`a__b_txt="..."` is the file a/b.txt."""
    for name, content in files.items():
        path = name.replace("__", "/")
        path = "%s.%s" % tuple(path.rsplit("_", 1))
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        data = content if isinstance(content, bytes) else content.encode()
        with open(path, "wb") as file:
            file.write(data)


def lines(*values):
    return "\n".join(json.dumps(value, ensure_ascii=False) for value in values) + "\n"


def pairs(count, start=0):
    return lines(*({"instruction": "q%d" % n, "output": "a"} for n in range(start, start + count)))


def split(names, **how):
    """{split: text} of a source of text."""
    texts = {TRAIN: "", VALIDATION: ""}
    for piece in find_source(names, **how).pieces():
        texts[piece.split] += piece.text
    return texts


def opened(names, block=32, **how):
    return open_datasets(names, BYTES, block, **how)


class TestValidation:
    def test_a_small_file_beside_a_large_one_is_not_all_there_is_to_train_on(self):
        write(in__input_txt=TEXT, in__README_txt="read me\n" * 90)
        assert len(split("in")[TRAIN]) > 0.9 * len(TEXT)

    def test_of_files_that_are_all_large_the_ends_are_held_out(self):
        write(in__a_txt=TEXT[:90_000], in__b_txt=TEXT[90_000:])
        texts = split("in")
        assert 0.02 < len(texts[VALIDATION]) / len(TEXT) < 0.04
        assert opened("in").held_out == "the last 3% of each text"

    def test_an_empty_file_is_nothing_to_validate_on(self):
        write(in__a_txt=TEXT[:90_000], in__b_txt=TEXT[90_000:], in____init___py="")
        assert opened("in").held_out == "the last 3% of each text"

    def test_a_large_value_is_not_held_out_whole(self):
        write(x_jsonl=lines({"text": TEXT}, {"text": TEXT[:99]}))
        assert len(split("x.jsonl")[VALIDATION]) < 0.1 * len(TEXT)

    @pytest.mark.parametrize("names", ["w", ("w/w.train.txt", "w/w.valid.txt", "w/w.test.txt")])
    def test_names_that_say_a_split_are_heeded_and_said(self, names):
        write(w__w_train_txt="")
        os.remove("w/w_train.txt")
        for name, text in (("train", TEXT[:5000]), ("valid", "valid\n" * 99), ("test", "test\n")):
            with open("w/w.%s.txt" % name, "w") as file:
                file.write(text)
        assert split(names) == {TRAIN: TEXT[:5000], VALIDATION: "valid\n" * 99}
        found = opened(names)
        assert found.held_out.endswith("w.valid.txt")
        assert "left out 1: for a test, by its name" in found.notes[0]

    def test_folders_that_say_a_split_are_heeded_too(self):
        write(c__train__a_py="a\n" * 99, c__val__b_py="b\n" * 99, c__train__test_util_py="t\n" * 9)
        assert split("c") == {TRAIN: "a\n" * 99 + "t\n" * 9, VALIDATION: "b\n" * 99}

    @pytest.mark.parametrize("name", ["test", "valid"])
    def test_a_name_leaves_something_to_train_on(self, name):
        write(**{name + "_txt": TEXT})
        assert len(split(name + ".txt")[TRAIN]) > 100_000

    def test_a_projects_own_tests_are_code_like_any_other(self):
        write(
            p__tests__test_a_py="a = 1\n" * 300,
            p__validation_py="b = 1\n" * 300,
            p__c_py="c\n" * 400,
        )
        assert len(split("p")[TRAIN]) > 3000

    def test_files_named_for_it_are_left_out_of_the_rest(self):
        write(in__a_txt=TEXT[:5000], in__b_txt="b\n" * 900, other__v_txt="v\n" * 300)
        assert split("in", validation="other/v.txt")[VALIDATION] == "v\n" * 300
        assert split("in", validation="in/b.txt") == {TRAIN: TEXT[:5000], VALIDATION: "b\n" * 900}
        assert split("in", validation=("other", "in/b.txt"))[TRAIN] == TEXT[:5000]
        with pytest.raises(DataError, match="is all in --validation"):
            split("in", validation="in")

    @pytest.mark.parametrize("share", [0.2, "0.2", "20%"])
    def test_a_share(self, share):
        write(x_txt=TEXT)
        assert len(split("x.txt", validation=share)[VALIDATION]) / len(TEXT) == pytest.approx(
            0.2, 0.01
        )

    @pytest.mark.parametrize("share", ["0", "1", "-0.1", "nan", "200%"])
    def test_no_share(self, share):
        write(x_txt=TEXT)
        with pytest.raises(UsageError, match=r"--validation is .* a share must be between 0 and 1"):
            split("x.txt", validation=share)

    def test_copies_are_on_one_side(self):
        texts = {"t%d_txt" % n: "%d is copied\n" % (n % 20) * 30 for n in range(200)}
        write(**{"in__" + name: text for name, text in texts.items()})
        found = find_source("in", 0.2)
        sides = {}
        for file, side in zip(found.files, found.splits):
            sides.setdefault(file.path.read_text(), set()).add(side)
        assert all(len(side) == 1 for side in sides.values()) and len(sides) == 20
        write(x_jsonl=lines(*({"text": "text %d" % (n % 50)} for n in range(500))))
        texts = list(find_source("x.jsonl", 0.2).pieces())
        assert not {p.text for p in texts if p.split == TRAIN} & {
            p.text for p in texts if p.split == VALIDATION
        }

    @pytest.mark.parametrize("count", range(2, 30, 3))
    def test_of_few_short_texts_one_validates(self, count):
        write(x_jsonl=lines(*({"text": "short text %d" % n} for n in range(count))))
        assert opened("x.jsonl", 8).validation.token_count >= 10

    def test_one_that_is_shorter_than_a_row_is_measured_all_the_same(self):
        write(x_txt="a line of text\n" * 40)
        found = opened("x.txt", 100)
        batch = found.validation.batch(np.array([0]))
        assert batch.tokens.shape == (1, 100) and 0 < batch.supervised < 40

    def test_records_have_it_too(self):
        write(r__train_jsonl=pairs(50), r__dev_jsonl=pairs(3, 50), r__test_jsonl=pairs(9, 60))
        found = opened("r")
        assert (len(found.train.examples), len(found.validation.examples)) == (50, 3)
        assert found.held_out == "dev.jsonl"
        found = opened("r/train.jsonl", validation="r/test.jsonl")
        assert (len(found.train.examples), len(found.validation.examples)) == (50, 9)
        prepare(PrepareConfig(source="r", out="out", tokenizer="bytes"))
        again = opened("out")
        assert (len(again.train.examples), again.held_out) == (50, "dev.jsonl")
        with pytest.raises(UsageError, match=r"--validation is for .* out is prepared"):
            opened("out", validation="0.2")

    def test_it_is_of_the_same_kind(self):
        write(r_jsonl=pairs(9), t_txt=TEXT)
        with pytest.raises(DataError, match=r"t\.txt is no file of records"):
            opened("r.jsonl", validation="t.txt")
        with pytest.raises(DataError, match="none fell to validation; left out 9: no text"):
            opened("t.txt", validation="r.jsonl")


class TestFiles:
    def test_a_list_under_the_name_of_a_split(self):
        records = [json.loads(line) for line in pairs(9).splitlines()]
        write(
            x_json=json.dumps({"train": records}),
            y_json=json.dumps({"version": 1, "data": records}),
        )
        for name in ("x.json", "y.json"):
            assert opened(name).notes[0].startswith("9 of 9 records")

    def test_several_and_directories_of_values(self):
        write(s__a_jsonl=pairs(20), s__b_jsonl=pairs(20, 20), t__c_txt=TEXT[:3000])
        for names in ("s", ("s/a.jsonl", "s/b.jsonl")):
            assert opened(names).notes[0].startswith("40 of 40 records")
        both = split(("t", "t/c.txt"))
        assert both[TRAIN] + both[VALIDATION] == TEXT[:3000]  # once

    def test_parquet_of_text_and_columns_that_nobody_needs(self):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        time = pyarrow.array([2**62] * 40, pyarrow.timestamp("ns"))  # of no date Python knows
        for name, key in (("a", "text"), ("b", "body")):
            table = pyarrow.table({key: ["text %d" % n for n in range(40)], "when": time})
            os.makedirs(name)
            parquet.write_table(table, name + "/x.parquet")
        assert split("a")[TRAIN].startswith("text 0text 1")
        assert split("b", text_key="body") == split("a")
        with pytest.raises(DataError, match="among its columns: body, when"):
            opened("b/x.parquet")

    def test_a_text_key(self):
        write(x_jsonl=lines(*({"body": "text %d" % n, "text": "no"} for n in range(40))))
        assert "no" not in split("x.jsonl", text_key="body")[TRAIN]
        with pytest.raises(DataError, match="no bodi among its keys: body, text"):
            opened("x.jsonl", text_key="bodi")

    def test_what_is_ours_hidden_or_behind_a_link_is_left_out_and_counted(self):
        write(in__a_txt=TEXT[:5000], in___x_txt="", in__MACOSX__b_txt="b", in__run__config_toml="",
              in__run__metrics_jsonl="{}")  # fmt: skip
        os.rename("in/_x.txt", "in/._x.txt")
        os.rename("in/MACOSX", "in/__MACOSX")
        os.makedirs("elsewhere")
        os.symlink(os.path.abspath("elsewhere"), "in/link")
        os.symlink("nothing", "in/lost.txt")
        os.mkfifo("in/pipe.jsonl")
        prepare(PrepareConfig(source="in/a.txt", out="in/prepared", tokenizer="bytes"))
        texts = split("in")
        assert texts[TRAIN] + texts[VALIDATION] == TEXT[:5000]
        said = "\n".join(opened("in").notes)
        for part in (
            "2: hidden",
            "2: a run, a model or prepared data",
            "1: a link to a directory",
            "2: no file, but a pipe",
        ):
            assert "left out " + part in said

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
    def test_texts_and_values_that_say_their_encoding(self, encoding):
        write(a_txt="né\n".encode(encoding) * 1, r_jsonl=pairs(9).encode(encoding))
        write(TEXT_TXT=("né\n" * 3000).encode(encoding))
        texts = split("TEXT.TXT")
        assert texts[TRAIN] + texts[VALIDATION] == "né\n" * 3000
        assert 0.02 < len(texts[VALIDATION]) / 9000 < 0.04
        assert opened("r.jsonl").notes[0].startswith("9 of 9 records")

    def test_what_cannot_be_read_is_left_out_and_counted(self):
        write(in__a_txt=TEXT[:5000], in__b_txt=b"ok\n\xff\xfe\xfa", in__c_py="# coding: rot13\nx",
              in__d_py="# coding: undefined\nx", in__e_jsonl='{"a": 1}\nnull\n{"te')  # fmt: skip
        with pytest.raises(
            DataError, match=r"none fell to validation; left out 1: not utf-8 \(in/b"
        ):
            opened("in")  # where what would have been held out is all broken
        write(**{"in__%s_txt" % name: name * 40 for name in "jk"})
        said = "\n".join(opened("in").notes)
        for part in ("not utf-8 (in/b.txt:2)", "in/c.py", "in/d.py", "no JSON (in/e.jsonl:3)"):
            assert part in said
        with pytest.raises(DataError, match="leave out --strict"):
            opened("in", strict=True)

    @pytest.mark.parametrize("name", ["\0", "\ud800", "x" * 300, "pipe.txt", "/dev/zero", "a.md"])
    def test_what_is_no_file_is_one_sentence(self, name):
        os.mkfifo("pipe.txt")
        write(a_md="text")
        with pytest.raises(DataError) as caught:
            opened(name)
        assert caught.value.fix

    def test_latin_1_is_named(self):
        write(x_jsonl='{"instruction": "é", "output": "é"}\n'.encode("latin-1") * 3)
        with pytest.raises(DataError, match="left out 3: not UTF-8"):
            opened("x.jsonl")


def test_the_end_of_a_document_as_it_is_written():
    write(x_txt="one<|endoftext|>two<|startoftext|>three\n" * 200)
    found = opened("x.txt")
    assert "is written 400 times in it" in found.notes[0] and "--special-tokens" in found.notes[0]
    read = opened("x.txt", special_tokens=True)
    assert read.notes == [] and read.train.token_count < found.train.token_count
    batch = read.train.batch(np.array([0]))
    assert batch.tokens[0, :8].tolist() == [*b"one", 256, *b"two", 256]
    assert reading_marks(load_tokenizer("gpt2")).encode("a<|endoftext|>") == [64, 50256]


@pytest.mark.parametrize("count", [2, 5, 6, 7, 8, 50])
@pytest.mark.parametrize("width, stride", [(6, 5), (6, 2), (6, 6), (6, 1)])
def test_every_token_counts_once(count, width, stride):
    text = np.arange(count, dtype=np.uint16) + 100
    passes = Passes([text, text], width, stride, 1 << 16)
    batch = passes.batch(np.arange(len(passes)))
    counted = batch.targets[batch.targets >= 0].tolist()
    lost = set(text[::width].tolist()) if stride == width else {100}  # as in the usual protocol
    assert sorted(counted) == sorted(2 * [t for t in text.tolist() if t not in lost])
    assert batch.supervised == len(counted)


def test_shards_that_are_not_as_they_were_written_are_found():
    write(x_txt=TEXT[:3000])
    out = prepare(PrepareConfig(source="x.txt", out="out", tokenizer="bytes"))
    path, facts = out / "train-00000.tokens", out / "dataset.json"
    whole, said = path.read_bytes(), facts.read_text()
    path.write_bytes(whole[:80] + b"\xff\xff" + whole[82:])
    with pytest.raises(DataError, match="is damaged"):
        opened("out")
    path.write_bytes(whole)
    content = json.loads(said)
    for changed in ({"splits": {}}, {"splits": {"train": {}}}, {"left_out": {"counts": None}},
                    {"splits": {**content["splits"], "train": {"shards": ["../x"]}}}):  # fmt: skip
        facts.write_text(json.dumps({**content, **changed}))
        with pytest.raises(DataError, match="is not as prepare writes it"):
            opened("out")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    """A pipe that nobody writes to: beside texts, alone in a directory, and named itself."""
    os.mkfifo(str(tmp_path / "pipe.txt"))
    for name in (tmp_path, tmp_path / "pipe.txt", os.devnull):
        with pytest.raises(DataError, match=r"has no \.py|is no file, but a device, a pipe"):
            find_source(str(name))
    (tmp_path / "a.txt").write_text("one two")
    assert [file.key for file in find_source(str(tmp_path)).files] == ["a.txt"]
