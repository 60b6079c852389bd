"""N steps == k steps + stop + a new process + N - k steps, bit for bit

What makes it true: beside the weights, a checkpoint has the optimizer's means, the step, how many
samples were seen (from which the order of the data follows) and the random generators. With kill -9
at random moments it is in tests/training/test_resume.py.
"""

from minigpt.checkpoint.run_files import resolve
from tests.helpers.reference import assert_same
from tests.helpers.runs import files, train


def test_four_steps_are_two_and_two(tmp_path):
    words = ["--steps", 4, "--save-every", 2, "--keep", 9]
    train(tmp_path, *words, "--out", tmp_path / "whole")
    train(tmp_path, *words, "--out", tmp_path / "half")
    last = resolve(tmp_path / "half", ("latest",))
    assert last.name == "step_00000004"
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    (tmp_path / "half" / "latest").write_text("checkpoints/step_00000002\n")
    (tmp_path / "half" / "best").write_text("checkpoints/step_00000002\n")
    train(tmp_path, "--resume", tmp_path / "half")
    again = tmp_path / "half" / "checkpoints" / "step_00000004"
    expected = files(tmp_path / "whole" / "checkpoints" / "step_00000004")
    for name, content in files(again).items():
        assert_same(content, expected[name], name)
