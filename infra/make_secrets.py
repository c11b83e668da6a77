"""Write fresh passwords, a self-signed certificate and a first API key into a folder, unless they are there.

`make up` runs it inside the training image, which has what it needs: no machine needs more than Docker for it.
"""

import datetime
import ipaddress
import json
import secrets
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def main(infra: Path) -> None:
    """Write what is missing into `infra/.env` and `infra/secrets`."""
    folder = infra / "secrets"
    folder.mkdir(exist_ok=True)
    if (infra / ".env").exists():
        print("infra/.env is there: nothing was changed")
        return
    names = ("AWS_SECRET_ACCESS_KEY", "DATABASE_PASSWORD", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_SESSION_SECRET")
    facts = {"AWS_ACCESS_KEY_ID": "stemwright", "MLFLOW_TRACKING_USERNAME": "admin"}
    facts |= {name: secrets.token_hex(16) for name in (*names, "GRAFANA_PASSWORD")}
    key = secrets.token_hex(24)
    identity = {"accessKey": facts["AWS_ACCESS_KEY_ID"], "secretKey": facts["AWS_SECRET_ACCESS_KEY"]}
    allowed = {
        "name": "stemwright",
        "credentials": [identity],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    write(folder / "s3.json", json.dumps({"identities": [allowed]}, indent=2))
    write(folder / "auth.ini", auth_ini(facts))
    write(folder / "keys.map", f'"{key}" "the first client";\n')
    certificate(folder)
    lines = [f"{name}={value}" for name, value in facts.items()]
    write(infra / ".env", "\n".join(["# Made by `make up`. PUBLISH=0.0.0.0 lets other machines in.", *lines]) + "\n")
    print(
        f"infra/.env and infra/secrets are written; MLflow: admin, {facts['MLFLOW_TRACKING_PASSWORD']}; API key: {key}"
    )


def write(path: Path, text: str) -> None:
    # The containers that read these run as users of their own.
    path.write_text(text)
    path.chmod(0o644)


def auth_ini(facts: dict[str, str]) -> str:
    """MLflow's own users: an admin with this password, everybody else may read nothing."""
    return (
        "[mlflow]\n"
        "default_permission = NO_PERMISSIONS\n"
        "database_uri = sqlite:////runs/auth.db\n"
        f"admin_username = {facts['MLFLOW_TRACKING_USERNAME']}\n"
        f"admin_password = {facts['MLFLOW_TRACKING_PASSWORD']}\n"
    )


def certificate(folder: Path) -> None:
    """Write tls.key and tls.crt for localhost, good for a year."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    hosts = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    built = built.serial_number(x509.random_serial_number()).not_valid_before(now)
    built = built.not_valid_after(now + datetime.timedelta(days=365))
    signed = built.add_extension(x509.SubjectAlternativeName(hosts), critical=False).sign(key, hashes.SHA256())
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    write(folder / "tls.key", key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain).decode())
    write(folder / "tls.crt", signed.public_bytes(pem).decode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
