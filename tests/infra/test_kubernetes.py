"""The manifests of infra/kubernetes: built, valid for two versions of the API, and true to the program's own names."""

import copy
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import serving.__main__
import training.__main__
from tests.infra.manifests import KUBERNETES, Manifest, arguments, build, containers, faults, load, named

pytestmark = pytest.mark.slow

FOLDERS = sorted(path.parent.name for path in KUBERNETES.glob("*/kustomization.yaml"))


@pytest.fixture(scope="module", params=FOLDERS)
def built(request: pytest.FixtureRequest) -> str:
    return build(KUBERNETES / request.param)


@pytest.mark.parametrize("version", ["1.36", "1.37"])
def test_the_api_knows_every_field(built: str, version: str, tmp_path: Path) -> None:
    (tmp_path / "built.yaml").write_text(built)
    validate = [Path(sys.executable).parent / "kubernetes-validate", "--strict", "--no-warn", "-k", version]
    done = subprocess.run([*validate, tmp_path / "built.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_rule_is_broken(built: str) -> None:
    assert faults(load(built)) == []


def test_command_lines_are_those_of_the_program(built: str) -> None:
    manifests = load(built)
    for _, container in containers(manifests):
        words = arguments(manifests, container)
        if container["image"] == "stemwright-train":
            if container.get("command") == ["torchrun"]:
                words = words[words.index("training") + 1 :]
            training.__main__.parser().parse_args(words)
    for job in named(manifests, "RayJob").values():
        python, flag, module, *words = shlex.split(job["spec"]["entrypoint"])
        assert (python, flag, module) == ("python", "-m", "serving")
        serving.__main__.parser().parse_args(words)


def serve() -> list[Manifest]:
    return load(build(KUBERNETES / "serve"))


def train() -> list[Manifest]:
    return load(build(KUBERNETES / "train"))


def set_restarts(manifests: list[Manifest]) -> None:
    named(manifests, "Job")["train"]["spec"]["template"]["spec"]["restartPolicy"] = "OnFailure"


def set_cpus(manifests: list[Manifest]) -> None:
    next(containers(manifests))[1]["resources"]["requests"]["cpu"] = "64"


def set_selector(manifests: list[Manifest]) -> None:
    named(manifests, "Service")["serve"]["spec"]["selector"] = {"app": "server"}


def set_port(manifests: list[Manifest]) -> None:
    named(manifests, "Service")["proxy"]["spec"]["ports"][0]["targetPort"] = "http"


def set_variable(manifests: list[Manifest]) -> None:
    (facts,) = (m["data"] for m in named(manifests, "ConfigMap").values() if "STEMWRIGHT_MODEL" in m["data"])
    facts["STEMWRIGHT_MODELS"] = "x"


def set_place(manifests: list[Manifest]) -> None:
    del named(manifests, "ConfigMap")["places"]["data"]["DATA"]


def set_mount(manifests: list[Manifest]) -> None:
    next(containers(manifests))[1]["volumeMounts"][0]["name"] = "nowhere"


def set_root(manifests: list[Manifest]) -> None:
    next(containers(manifests))[0]["securityContext"]["runAsUser"] = 0


def set_grace(manifests: list[Manifest]) -> None:
    named(manifests, "Deployment")["serve"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 30


@pytest.mark.parametrize(
    ("manifests", "spoil", "said"),
    [
        (train, set_restarts, "has a podFailurePolicy and restarts its pods"),
        (train, set_cpus, "asks for more cpu than its limit"),
        (train, set_place, "has no DATA for its arguments"),
        (train, set_mount, "mounts nowhere, which its pod does not have"),
        (train, set_root, "may run as root"),
        (serve, set_selector, "selects no pod"),
        (serve, set_port, "leads to a port http that no pod has"),
        (serve, set_variable, "sets STEMWRIGHT_MODELS, which the program does not know"),
        (serve, set_grace, "is killed before its songs are finished"),
    ],
)
def test_a_broken_rule_is_named(
    manifests: Callable[[], list[Manifest]], spoil: Callable[[list[Manifest]], None], said: str
) -> None:
    spoilt = copy.deepcopy(manifests())
    spoil(spoilt)
    assert any(said in fault for fault in faults(spoilt)), faults(spoilt)
