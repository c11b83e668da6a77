"""doctor: a table of what is there and what is wrong."""

import argparse
from pathlib import Path

from training.commands.options import ARCHIVE, Commands, add_device
from training.errors import ConfigError


def add(commands: Commands) -> None:
    doctor = commands.add_parser(
        "doctor", help="check this machine and services; exit code 1 if something named does not work"
    )
    doctor.add_argument(
        "--store", action="append", default=[], metavar="URL", help="try s3://bucket/prefix or a folder"
    )
    doctor.add_argument("--mlflow", metavar="URI", help="try this MLflow (default MLFLOW_TRACKING_URI, if set)")
    doctor.add_argument("--model", metavar="ARCHIVE", help=f"separate a second with {ARCHIVE}")
    doctor.add_argument(
        "--folder", type=Path, default=Path(), metavar="DIR", help="folder of runs and cache (default: this one)"
    )
    add_device(doctor)
    doctor.set_defaults(run=run_doctor)


def run_doctor(given: argparse.Namespace) -> int:
    import torch

    from training.config import tracking_uri_given
    from training.doctor import machine, services
    from training.doctor.finding import findings_table

    try:
        device = torch.device(given.device) if given.device and given.device != "auto" else None
    except RuntimeError as error:
        raise ConfigError(f"there is no device {given.device}: set --device to auto, cpu or cuda:0") from error
    findings = [machine.code(), machine.python(), machine.torch_and_cuda(device), machine.precision(device)]
    findings += [machine.processors(), machine.memory(), machine.disk(given.folder), machine.java()]
    findings += [services.store(url) for url in given.store]
    if uri := given.mlflow or tracking_uri_given():
        findings.append(services.mlflow(uri))
    if given.model:
        findings.append(services.archive(given.model, device))
    print(findings_table(findings))
    return 1 if any(finding.verdict == "wrong" for finding in findings) else 0
