"""A PostgreSQL server on loopback, for benchmarks and tests; nothing of it is left afterwards."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

#: Debian puts a version's programs here, off the PATH.
DEBIAN = Path("/usr/lib/postgresql")
USER = "unet"


def find_programs() -> Path | None:
    """The folder of `initdb` and `postgres`, the newest version's; or None."""
    versions = [path.parent for path in DEBIAN.glob("*/bin/initdb")]
    if versions:
        return max(versions, key=lambda path: float(path.parent.name))
    found = shutil.which("initdb")
    return Path(found).parent if found is not None else None


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URI of an empty database."""
    programs = find_programs()
    if programs is None:
        raise RuntimeError("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    password = secrets.token_hex(16)
    # PostgreSQL does not run as root.
    owner = "postgres" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="unet-postgres-") as scratch:
        folder = Path(scratch)
        (folder / "password").write_text(password, encoding="ascii")
        if owner is not None:
            for path in (folder, folder / "password"):
                shutil.chown(path, owner, owner)
        initdb = [f"{programs}/initdb", "-D", f"{folder}/data", "-U", USER, "-A", "scram-sha-256", "--no-sync"]
        subprocess.run(
            [*initdb, f"--pwfile={folder / 'password'}"],
            check=True,
            capture_output=True,
            cwd="/",
            user=owner,
            group=owner,
        )
        port = free_port()
        # Where a machine is lost, this database is too: it need not wait for the disk.
        options = [
            "-c",
            "fsync=off",
            "-c",
            "lc_messages=C",
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            f"unix_socket_directories={folder}",
        ]
        words = [f"{programs}/postgres", "-D", f"{folder}/data", "-p", str(port), *options]
        with (folder / "log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(words, stdout=log, stderr=log, cwd="/", user=owner, group=owner)
        try:
            _wait(process, folder / "log")
            yield f"postgresql://{USER}:{password}@127.0.0.1:{port}/postgres"
        finally:
            # Ends its clients' sessions too.
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if "ready to accept connections" in log.read_text(errors="replace"):
            return
        time.sleep(0.1)
    raise RuntimeError(log.read_text(errors="replace")[-4000:])
