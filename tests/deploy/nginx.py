"""Runs nginx with the shipped configurations, in which only addresses and paths are replaced."""

import base64
import datetime
import hashlib
import ipaddress
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.serving.processes import free_port, running

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PROGRAM = shutil.which("nginx", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def write_configuration(folder: Path, servers: dict[str, str], plain: int | None, tls: int, name: str = "nginx.conf") -> Path:
    """Write a shipped configuration with this machine's addresses and a certificate, and return its path.

    Args:
        servers: for each "host:port" in the file, the one to put in its place.
        plain, tls: ports to listen on without and with TLS; plain is None if the configuration has none.
        name: name of the configuration.
    """
    write_certificate(folder)
    paths = "".join(f"    {t}_temp_path {folder}/{t};\n" for t in TEMPORARY)
    replaced = {
        **servers, "listen 443": f"listen 127.0.0.1:{tls}", "/etc/nginx/certificates": str(folder),
        "/run/nginx.pid": f"{folder}/nginx.pid", "http {\n": f"http {{\n{paths}",
    }  # fmt: skip
    if plain is not None:
        replaced["listen 127.0.0.1:8080"] = f"listen 127.0.0.1:{plain}"
    text = (DEPLOY / name).read_text()
    for old, new in replaced.items():
        assert old in text, f"deploy/{name} does not have {old!r} any more"
        text = text.replace(old, new)
    path = folder / "nginx.conf"
    path.write_text(text)
    return path


def command(conf: Path, *options: str) -> list[str]:
    """Return the command of nginx in the foreground. Its workers stay root if it is, because only root may read pytest's folders then."""
    user = "user root; " if os.getuid() == 0 else ""
    return [PROGRAM, "-e", "stderr", "-p", str(conf.parent), "-c", str(conf), "-g", f"{user}daemon off;", *options]


def run(folder: Path, servers: dict[str, str], plain: int, tls: int):
    """Run nginx and yield its address without TLS, http://127.0.0.1:PORT."""
    address = f"http://127.0.0.1:{plain}"
    with running(command(write_configuration(folder, servers, plain, tls)), f"{address}/health", 20):
        yield address


@contextmanager
def run_under_a_path(folder: Path, server: str, ready: str):
    """Run nginx in front of a server, http://127.0.0.1:PORT, and yield its address, https://127.0.0.1:PORT/monai, once it answers at the path `ready`.

    Meanwhile the package `requests` trusts its certificate.
    """
    tls = free_port()
    conf = write_configuration(folder, {"127.0.0.1:8000": server.removeprefix("http://")}, None, tls, "nginx-path.conf")
    address = f"https://127.0.0.1:{tls}/monai"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REQUESTS_CA_BUNDLE", str(folder / "server.crt"))
        with running(command(conf), f"{address}{ready}", 20):
            yield address


def key_hash(folder: Path) -> str:
    """Return the SHA-256 of the public key of the certificate in `folder`, in base64, as Chromium wants it."""
    certificate = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    key = certificate.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(key).digest()).decode()


def write_certificate(folder: Path) -> None:
    """Write server.key and server.crt, a self-signed certificate for 127.0.0.1 that is valid for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "server.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_format = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "server.key").write_bytes(key.private_bytes(*key_format))
