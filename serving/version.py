"""The identity of this code: the version of the package and the commit that it was made from."""

import subprocess
from importlib import metadata
from pathlib import Path

COMMIT_FILE = Path(__file__).parent / "commit.txt"
"""Holds the commit in images and in what `git archive` writes; a placeholder in a checkout."""


def commit() -> str:
    """The commit of this code, "<40 hex digits>", with "-dirty" behind where its files differ; "unknown" without one."""
    stored = COMMIT_FILE.read_text().strip() if COMMIT_FILE.exists() else ""
    if stored and not stored.startswith("$Format"):
        return stored
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"


def installed() -> str:
    """Version, commit, torch and CUDA as lines to print."""
    import torch

    gpus = [torch.cuda.get_device_name(gpu) for gpu in range(torch.cuda.device_count())]
    cuda = torch.version.cuda or "none, torch is built for the CPU"
    return "\n".join(
        [
            f"stemwright {version()}",
            f"commit     {commit()}",
            f"torch      {torch.__version__}",
            f"CUDA       {cuda}{', ' if gpus else ''}{', '.join(gpus)}",
        ]
    )


def version() -> str:
    """The version of the installed package; "unknown" where only its files are there."""
    try:
        return metadata.version("stemwright")
    except metadata.PackageNotFoundError:
        return "unknown"
