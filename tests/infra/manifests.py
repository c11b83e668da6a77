"""Kubernetes manifests as `kubectl kustomize` builds them, and the rules that they keep.

The rules are those that a schema cannot tell: references that lead somewhere, names that the program knows, and what an API
server refuses although the schema allows it.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from serving.settings import Settings

KUBERNETES = Path(__file__).parent.parent.parent / "infra" / "kubernetes"
SECRETS = {"stemwright-aws", "stemwright-proxy"}
"""Secrets that a user makes; infra/README.md says how."""
VARIABLES = {f"STEMWRIGHT_{name.upper()}" for name in Settings.__dataclass_fields__} | {"MLFLOW_TRACKING_URI"}
VARIABLES |= {"STEMWRIGHT_MLFLOW_PUBLIC_URL", "STEMWRIGHT_IMAGE"}  # of training/config.py
OF_THE_PROGRAM = ("STEMWRIGHT_", "AWS_", "MLFLOW_")
UNITS = {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}

Manifest = dict[str, Any]


def build(folder: Path) -> str:
    """The YAML of one kustomization."""
    kubectl = Path(sys.executable).parent / "kubectl"
    return subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=True).stdout


def load(text: str) -> list[Manifest]:
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def named(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {m["metadata"]["name"]: m for m in manifests if m["kind"] == kind}


def templates(value: Any) -> Iterator[Manifest]:
    """Every pod template below a value: those of Deployments and Jobs, and those inside custom resources."""
    if isinstance(value, dict):
        if "containers" in value.get("spec", {}) if isinstance(value.get("spec"), dict) else False:
            yield value
        for child in value.values():
            yield from templates(child)
    elif isinstance(value, list):
        for child in value:
            yield from templates(child)


def containers(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Every container after the spec of its pod."""
    for template in templates(manifests):
        for container in [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]:
            yield template["spec"], container


def quantity(text: str | int) -> float:
    found = re.fullmatch(r"([\d.]+)(m|Ki|Mi|Gi)?", str(text))
    assert found, f"{text} is no quantity"
    return float(found[1]) * UNITS[found[2] or ""]


def matches(selector: Manifest, labels: Manifest) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())


def environment(manifests: list[Manifest], container: Manifest) -> dict[str, str]:
    """The variables that a container gets from ConfigMaps and by name."""
    maps = named(manifests, "ConfigMap")
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            found |= maps[source["configMapRef"]["name"]]["data"]
    return found | {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}


def arguments(manifests: list[Manifest], container: Manifest) -> list[str]:
    """The arguments of a container with its variables put in, as Kubernetes does it."""
    values = environment(manifests, container)
    return [re.sub(r"\$\((\w+)\)", lambda m: values.get(m[1], m[0]), word) for word in container.get("args", [])]


def faults(manifests: list[Manifest]) -> list[str]:
    """A sentence for every rule that is broken."""
    return [
        *security(manifests),
        *resources(manifests),
        *references(manifests),
        *jobs(manifests),
        *variables(manifests),
    ]


def security(manifests: list[Manifest]) -> Iterator[str]:
    """The `restricted` level of pod security, a read-only root, and a writable /tmp."""
    for pod, container in containers(manifests):
        name, pod_security, own = container["name"], pod["securityContext"], container["securityContext"]
        if not pod_security.get("runAsNonRoot") or pod_security.get("runAsUser", 0) == 0:
            yield f"{name} may run as root"
        if pod_security.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{name} has no seccomp profile"
        if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name} has privileges"
        if own.get("readOnlyRootFilesystem") is not True:
            yield f"{name} writes to its root"
        if "/tmp" not in {mount["mountPath"] for mount in container["volumeMounts"]}:
            yield f"{name} has no /tmp to write to"


def resources(manifests: list[Manifest]) -> Iterator[str]:
    """Every container asks for CPU and memory, and for no more than its limit."""
    for _, container in containers(manifests):
        asked, most = container["resources"]["requests"], container["resources"]["limits"]
        for resource in {"cpu", "memory"} - (asked.keys() & most.keys()):
            yield f"{container['name']} does not bound its {resource}"
        for resource, amount in asked.items():
            if resource in most and quantity(amount) > quantity(most[resource]):
                yield f"{container['name']} asks for more {resource} than its limit"


def references(manifests: list[Manifest]) -> Iterator[str]:
    """Selectors select pods, ports and volumes exist, ConfigMaps and Secrets are there or are the user's."""
    pods = list(templates(manifests))
    labels = [pod.get("metadata", {}).get("labels", {}) for pod in pods]
    for manifest in manifests:
        kind, name, spec = manifest["kind"], manifest["metadata"]["name"], manifest.get("spec", {})
        selector = spec.get("podSelector", spec.get("selector", {}))
        selector = selector.get("matchLabels", {} if kind == "NetworkPolicy" else selector)
        if kind == "Deployment" and not matches(selector, spec["template"]["metadata"]["labels"]):
            yield f"{kind} {name} does not select its own pods"
        elif selector and not any(matches(selector, found) for found in labels):
            yield f"{kind} {name} selects no pod"
        if kind == "Service":
            ports = {
                port["name"]
                for pod, found in zip(pods, labels, strict=True)
                if matches(selector, found)
                for container in pod["spec"]["containers"]
                for port in container.get("ports", [])
            }
            yield from (
                f"Service {name} leads to a port {port['targetPort']} that no pod has"
                for port in spec["ports"]
                if "targetPort" in port and port["targetPort"] not in ports
            )
        if kind == "HorizontalPodAutoscaler" and spec["scaleTargetRef"]["name"] not in named(manifests, "Deployment"):
            yield f"{name} scales nothing"
    for pod, container in containers(manifests):
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        yield from (
            f"{container['name']} mounts {mount['name']}, which its pod does not have"
            for mount in container["volumeMounts"]
            if mount["name"] not in volumes
        )
        sources = [*container.get("envFrom", []), *volumes.values()]
        sources += [part for volume in volumes.values() for part in volume.get("projected", {}).get("sources", [])]
        for source in sources:
            for key, known in (("configMap", named(manifests, "ConfigMap").keys()), ("secret", SECRETS)):
                reference = source.get(f"{key}Ref", source.get(key))
                if reference and reference["name"] not in known:
                    yield f"{container['name']} wants the {key} {reference['name']}, which nobody makes"


def jobs(manifests: list[Manifest]) -> Iterator[str]:
    """Rules by which an API server refuses a Job, and names of pods that must resolve."""
    for name, job in named(manifests, "Job").items():
        spec, pod = job["spec"], job["spec"]["template"]["spec"]
        if "podFailurePolicy" in spec and pod["restartPolicy"] != "Never":
            yield f"{name} has a podFailurePolicy and restarts its pods"
        own = {container["name"] for container in pod["containers"]}
        for rule in spec.get("podFailurePolicy", {}).get("rules", []):
            if rule.get("onExitCodes", {}).get("containerName", next(iter(own))) not in own:
                yield f"{name} looks at the exit code of a container that it does not have"
        if "subdomain" in pod and pod["subdomain"] not in named(manifests, "Service"):
            yield f"{name} has a subdomain without a Service"


def variables(manifests: list[Manifest]) -> Iterator[str]:
    """Variables of the program are those that it knows, and arguments name only variables that are set."""
    for pod, container in containers(manifests):
        for name in environment(manifests, container):
            if name.startswith(OF_THE_PROGRAM) and name not in VARIABLES:
                yield f"{container['name']} sets {name}, which the program does not know"
        for word in arguments(manifests, container):
            for name in re.findall(r"\$\((\w+)\)", word):
                if name != "JOB_COMPLETION_INDEX":
                    yield f"{container['name']} has no {name} for its arguments"
        if container["name"] == "serve":
            grace = float(environment(manifests, container).get("STEMWRIGHT_GRACE_PERIOD_S", 25))
            if pod["terminationGracePeriodSeconds"] < grace + 10:
                yield f"{container['name']} is killed before its songs are finished"
