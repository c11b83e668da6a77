"""The command `stemwright` as a process: what it offers, how quickly, and how a shell completes it."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving.version import commit
from training.__main__ import main, parser

STEMWRIGHT = Path(sys.executable).parent / "stemwright"


def commands() -> list[str]:
    (choices,) = [action.choices for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return list(choices)


def test_it_has_the_commands_of_both_packages() -> None:
    assert {"train", "evaluate", "compare", "separate", "serve", "doctor"} <= set(commands())


def test_the_help_names_every_command_and_loads_nothing_heavy() -> None:
    help = subprocess.run([STEMWRIGHT, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(f"    {command} " in help for command in commands())
    heavy = "torch", "numpy", "boto3", "mlflow", "shtab"
    code = f"import sys, training.__main__ as m; m.parser(); print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_error_of_either_package_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "nowhere.mar"]) == 1
    assert capsys.readouterr().err == "error: there is no model archive at nowhere.mar: check the path\n"
    assert main(["export", "--run-dir", "nowhere", "--to", "x.mar"]) == 1
    assert capsys.readouterr().err == "error: nowhere holds no run: it has no config.json\n"


def test_the_version_says_what_runs_here(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code is None
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["stemwright"] == "0.1.0" and lines["commit"] == commit() and lines["torch"] == torch.__version__
    assert lines["CUDA"].startswith(torch.version.cuda or "none")


def test_the_commit_is_that_of_a_file_of_git_archive_or_of_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stored = tmp_path / "commit.txt"
    monkeypatch.setattr("serving.version.COMMIT_FILE", stored)
    stored.write_text("0123abcd-dirty\n")
    assert commit() == "0123abcd-dirty"
    stored.write_text("$Format:%H$\n")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert commit().removesuffix("-dirty") == (head.stdout.strip() or "unknown")


def test_git_archive_writes_the_commit() -> None:
    root = Path(__file__).parent.parent
    git = ["git", "archive", "--worktree-attributes", "--format=tar", "HEAD", "serving/commit.txt"]
    made = subprocess.run(git, capture_output=True, cwd=root)
    if made.returncode != 0:
        pytest.skip("this is no checkout of git")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, check=True, cwd=root).stdout
    assert head.strip() in made.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_and_choices(tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(subprocess.run([STEMWRIGHT, "--completion", "bash"], capture_output=True, text=True).stdout)
    code = f"""
    . {script}
    complete_words() {{
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
        $(complete -p stemwright | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        printf '["%s"]\\n' "$(IFS=,; echo "${{COMPREPLY[*]}}" | sed 's/,/","/g')"
    }}
    complete_words stemwright eval
    complete_words stemwright train --preset studio
    """
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [["evaluate"], ["studio", "studio-small"]]
