"""MLflow's server with passwords: its command line and what it must know, in one place for all who start it.

    python -m infra.mlflow_server --host 0.0.0.0 --allowed-hosts mlflow:5000 --artifacts s3://mlflow/artifacts

Reads the environment variables of REQUIRED, and AWS_* as boto3 does. Passwords go by the environment and a file, never
by a command line, which every user of the machine can read.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

USER = "admin"
#: The database (a URI with its password), the admin's first password, and what cookies are signed with.
REQUIRED = ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY")


def server_command(*, host: str, port: int, artifacts: str, allowed_hosts: str | None = None) -> list[str]:
    """The command line. `allowed_hosts`: what clients may call the server, where that is no address of this machine."""
    words = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
    words += ["--host", host, "--port", str(port), "--artifacts-destination", artifacts]
    return words + (["--allowed-hosts", allowed_hosts] if allowed_hosts else [])


def server_environment(folder: Path, secrets: Mapping[str, str]) -> dict[str, str]:
    """The environment: REQUIRED, which `secrets` has, and a file in `folder` that only its owner reads."""
    config = folder / "auth.ini"
    lines = ["[mlflow]", "default_permission = READ", f"admin_username = {USER}"]
    # A % in a password would begin an interpolation.
    lines += [f"database_uri = {secrets['MLFLOW_BACKEND_STORE_URI'].replace('%', '%%')}"]
    lines += ["authorization_function = mlflow.server.auth:authenticate_request_basic_auth"]
    config.touch(mode=0o600)
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    known = {name: secrets[name] for name in REQUIRED}
    return {
        **known,
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Six processes of 250 MB, which only its features for language models use.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def main() -> None:
    """Become the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--artifacts", required=True, help="URL below which artifacts lie")
    parser.add_argument("--allowed-hosts", help="names by which clients may call it, with ports, separated by commas")
    parsed = parser.parse_args()
    missing = [name for name in REQUIRED if not os.environ.get(name)]
    if missing:
        parser.error(f"environment variables are not set: {', '.join(missing)}")
    words = server_command(**vars(parsed))
    folder = Path(tempfile.mkdtemp(prefix="unet-mlflow-"))
    os.execve(words[0], words, {**os.environ, **server_environment(folder, os.environ)})


if __name__ == "__main__":
    main()
