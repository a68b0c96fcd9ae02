from __future__ import annotations

import pytest

from kvshift.cli import main
from kvshift.cli.pilot import resume_line
from kvshift.errors import OutputError, UsageError


def test_without_a_name_experiments_are_listed(capsys) -> None:
    assert main(["reproduce"]) == 0
    said = capsys.readouterr().out
    for name in ("theorem1", "theorem2", "theorem3", "fig2"):
        assert name in said


def test_several_are_judged_together(tmp_path, capsys) -> None:
    names = ["theorem2", "theorem1"]
    assert main(["reproduce", *names, "--scale", "tiny", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    for name in names:
        assert (tmp_path / "out" / name / "verdict.json").exists()
        assert name in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fig99"], "No experiment is called 'fig99'; expected all, theorem1"),
        (["fig2", "all", "fig99"], "No experiment is called 'fig99'; expected all, theorem1"),
        (["fig2", "--scale", "huge"], "--scale 'huge': expected one of tiny, small, gpu"),
    ],
)
def test_bad_arguments_end_in_a_sentence(tmp_path, capsys, arguments, said) -> None:
    out = tmp_path / "out"
    assert main(["reproduce", *arguments, "--out", str(out)]) == UsageError.exit_code
    assert said in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_a_folder_that_cannot_be_used(tmp_path, capsys) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["reproduce", "fig2", "--out", str(tmp_path)]) == OutputError.exit_code
    assert "already holds other files (notes.txt)" in " ".join(capsys.readouterr().err.split())


def test_an_interrupted_one_says_how_to_go_on() -> None:
    line = resume_line(["reproduce", "all", "--scale", "small"])
    assert line is not None
    assert line.endswith("reproduce all --scale small")
