"""The tasks of infra/sky: what their scripts start, with a stub in docker's place; and what SkyPilot says of them."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

import serving.__main__
import training.__main__

SKY = Path(__file__).parent.parent.parent / "infra" / "sky"
TASKS = ("train", "serve", "catalogue")
NODES = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_GPUS_PER_NODE": "1"}
ALONE = {**NODES, "SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0"}
SECOND = {**NODES, "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}


def started(task: str, folder: Path, **environment: str) -> list[str]:
    """The arguments of `docker` when the task's script runs with its own variables and these."""
    facts = yaml.safe_load((SKY / f"{task}.yaml").read_text())
    docker = folder / "docker"
    docker.write_text('#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done\n')
    docker.chmod(0o755)
    environment = {**facts["envs"], "AWS_ACCESS_KEY_ID": "a key", "AWS_SECRET_ACCESS_KEY": "hush", **environment}
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    run = ["bash", "-c", facts["run"]]
    done = subprocess.run(run, env={**environment, "PATH": path}, capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def test_one_machine_trains_by_the_program_itself(tmp_path: Path) -> None:
    words = started("train", tmp_path, **ALONE)
    after = words[words.index("stemwright-train", words.index("--name") + 2) + 1 :]
    given = training.__main__.parser().parse_args(after)
    assert (given.resume, given.checkpoint_uri, given.device) == (True, "s3://stemwright/runs/first", "cuda")
    assert "hush" not in words and "AWS_SECRET_ACCESS_KEY" in words and "AWS_ENDPOINT_URL" not in words


def test_several_machines_train_by_torchrun(tmp_path: Path) -> None:
    words = started("train", tmp_path, **SECOND, AWS_ENDPOINT_URL="https://store")
    assert words[words.index("--entrypoint") + 1] == "torchrun" and "AWS_ENDPOINT_URL" in words
    for flag, value in (("--node-rank", "1"), ("--nnodes", "2"), ("--master-addr", "10.0.0.1")):
        assert words[words.index(flag) + 1] == value
    training.__main__.parser().parse_args(words[words.index("training") + 1 :])


def test_a_server_gets_its_model(tmp_path: Path) -> None:
    words = started("serve", tmp_path, **ALONE, MODEL="s3://models/x.mar")
    assert "STEMWRIGHT_MODEL=s3://models/x.mar" in words and words[-1] == "stemwright-serve"


def test_the_head_of_a_catalogue_runs_it_and_the_others_join(tmp_path: Path) -> None:
    script = started("catalogue", tmp_path, **ALONE)[-1]
    command = shlex.split(script.split("exec ")[1])
    assert command[:3] == ["python", "-m", "serving"]
    serving.__main__.parser().parse_args(command[3:])
    joining = started("catalogue", tmp_path, **SECOND)
    assert joining[-4:] == ["start", "--address", "10.0.0.1:6399", "--block"]


@pytest.mark.parametrize("task", TASKS)
def test_skypilot_reads_it(task: str) -> None:
    """Runs by `make anywhere`, which gives SkyPilot an environment of its own."""
    sky = SKY.parent.parent / ".sky" / "bin" / "python"
    if not sky.exists():
        pytest.skip("no SkyPilot: make anywhere")
    code = "import sys, sky; print(sky.Task.from_yaml(sys.argv[1]).name)"
    environment = {**os.environ, "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run([sky, "-c", code, SKY / f"{task}.yaml"], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == f"stemwright-{task}", done.stderr
