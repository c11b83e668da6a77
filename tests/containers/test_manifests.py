"""The images under the very limits that infra/kubernetes sets: user, read-only root, capabilities, memory, volumes."""

import time
from pathlib import Path

import numpy as np
import torch

from serving.model.archive import write_archive
from serving.model.networks import build as build_network
from serving.storage.progress import no_progress
from serving.storage.storage import exists, store_file
from tests.containers.engine import build, docker, needs_docker
from tests.infra.manifests import KUBERNETES, Manifest, arguments, containers, environment, load, quantity
from tests.infra.manifests import build as kustomize
from tests.torchserve import SPEC, encoded, request, stems_in
from training.data.push import push
from training.demo.local_s3 import S3Server, free_port
from training.demo.songs import write_songs

pytestmark = needs_docker
SHORT = "--batch-size=1 --crop-s=1 --validations=1 --valid-excerpt-s=2"


def flags(pod: Manifest, container: Manifest, variables: dict[str, str]) -> list[str]:
    """The flags of `docker run` that mean what a manifest says, on this machine's network.

    Docker's own seccomp profile is RuntimeDefault. Every emptyDir is a tmpfs here, which counts as memory: stricter than there.
    """
    security, own = pod["securityContext"], container["securityContext"]
    found = ["--network", "host", "--user", f"{security['runAsUser']}:{security['runAsGroup']}"]
    found += ["--memory", str(int(quantity(container["resources"]["limits"]["memory"])))]
    found += ["--read-only"] if own["readOnlyRootFilesystem"] else []
    found += ["--security-opt", "no-new-privileges"] if not own["allowPrivilegeEscalation"] else []
    for capability in own["capabilities"]["drop"]:
        found += ["--cap-drop", capability]
    sizes = {
        volume["name"]: quantity(volume["emptyDir"]["sizeLimit"]) for volume in pod["volumes"] if "emptyDir" in volume
    }
    for mount in container["volumeMounts"]:
        found += ["--tmpfs", f"{mount['mountPath']}:rw,mode=0777,size={int(sizes[mount['name']])}"]
    for name, value in variables.items():
        found += ["-e", f"{name}={value}"]
    return found


def one(folder: str, name: str) -> tuple[list[Manifest], Manifest, Manifest]:
    """The manifests of a folder, and a pod with its container of a name."""
    manifests = load(kustomize(KUBERNETES / folder))
    ((pod, container),) = (found for found in containers(manifests) if found[1]["name"] == name)
    return manifests, pod, container


def test_a_pod_that_serves_becomes_ready_and_separates(s3: S3Server, tmp_path: Path) -> None:
    image = build("serve")
    manifests, pod, container = one("serve", "serve")
    torch.manual_seed(0)
    write_archive(tmp_path / "tiny.mar", SPEC, build_network(SPEC), {})
    variables = environment(manifests, container) | s3.environment
    store_file(tmp_path / "tiny.mar", variables["STEMWRIGHT_MODEL"])
    ports = {name: str(free_port()) for name in ("HTTP", "MANAGEMENT", "METRICS")}
    variables |= {f"STEMWRIGHT_{name}_PORT": port for name, port in ports.items()}

    started = docker("run", "-d", *flags(pod, container, variables), image).stdout.strip()
    try:
        probe = container["startupProbe"]
        deadline = time.monotonic() + probe["periodSeconds"] * probe["failureThreshold"]
        while docker("exec", started, *probe["exec"]["command"], check=False).returncode != 0:
            assert time.monotonic() < deadline, docker("logs", started).stdout[-4000:]
            time.sleep(2)
        address = f"http://127.0.0.1:{ports['HTTP']}"
        assert request("GET", address + container["livenessProbe"]["httpGet"]["path"], timeout=10).status == 200
        mixture = np.random.default_rng(0).uniform(-0.5, 0.5, (30 * 44_100, 2)).astype(np.float32)
        answer = request("POST", f"{address}/predictions/stemwright", body=encoded(mixture, 44_100), timeout=60)
        assert answer.status == 200, answer.data[:1000]
        np.testing.assert_allclose(sum(stems_in(answer.data).values()), mixture, atol=1e-4)
        docker("exec", started, *container["lifecycle"]["preStop"]["exec"]["command"][:1], "0")
    finally:
        docker("rm", "-f", started)


def test_a_pod_that_trains_leaves_its_run_and_its_model_in_the_bucket(s3: S3Server, tmp_path: Path) -> None:
    image = build("train")
    manifests, pod, container = one("train", "train")
    write_songs(tmp_path / "songs", train=3, test=1, seconds=4, seed=0)
    variables = environment(manifests, container) | s3.environment
    push(str(tmp_path / "songs"), variables["DATA"], no_progress)
    variables["MLFLOW_TRACKING_URI"] = ""  # there is no such server here
    words = ["--steps=2" if word.startswith("--minutes") else word for word in arguments(manifests, container)]
    docker("run", "--rm", *flags(pod, container, variables), image, *words, *SHORT.split())
    assert exists(f"{variables['MODELS']}/first.mar")
    assert [path for path in (tmp_path / "buckets").rglob("runs/first/*") if path.is_file()], (
        "the run is not in the bucket"
    )


def test_the_proxy_gets_its_page() -> None:
    image = build("serve")
    _, pod, container = one("serve", "page")
    *shell, copy = container["command"]
    done = docker(
        "run", "--rm", *flags(pod, container, {}), "--entrypoint", shell[0], image, *shell[1:], f"{copy} && ls /page"
    )
    assert {"index.html", "openapi.yaml"} <= set(done.stdout.split())


def test_a_limit_of_memory_holds() -> None:
    """The engine really kills what takes more; the tests above would else prove nothing of it."""
    image = build("serve")
    hungry = ["--memory", "64m", "--memory-swap", "64m", "--entrypoint", "python", image, "-c", "bytearray(200 << 20)"]
    assert docker("run", "--rm", *hungry, check=False).returncode == 137
