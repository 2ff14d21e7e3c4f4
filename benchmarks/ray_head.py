"""A Ray head with dashboard and token on loopback, for benchmarks and tests; nothing of it is left afterwards."""

import contextlib
import importlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

START_SECONDS = 90


def why_not() -> str | None:
    """Why there can be no dashboard here, or None."""
    try:
        importlib.import_module("ray.dashboard.optional_deps")
    except ImportError as error:
        return f"ray[default] is not installed (make install-dev): {error}"
    return None


@dataclass(frozen=True)
class RayHead:
    """A running head."""

    address: str
    """Of the Jobs API."""
    token: str
    process: subprocess.Popen[bytes]

    def environment(self) -> dict[str, str]:
        """What a user sets to reach it."""
        return {"RAY_API_SERVER_ADDRESS": self.address, "RAY_AUTH_TOKEN": self.token}


@contextlib.contextmanager
def ray_head(*, cpus: int = 2, environment: Mapping[str, str] | None = None) -> Iterator[RayHead]:
    """A head whose jobs have `environment` besides, such as a store's credentials."""
    # Unix sockets lie below: their paths must be short.
    with tempfile.TemporaryDirectory(prefix="u", ignore_cleanup_errors=True) as scratch:
        token = secrets.token_hex(16)
        ports = _free_ports(4)
        outside = {
            name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "UNET_", "MLFLOW_"))
        }
        scripts = str(Path(sys.executable).parent)
        given = {
            **outside,
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "HOME": scratch,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_USAGE_STATS_ENABLED": "0",
            **(environment or {}),
        }
        log = Path(scratch, "start.log")
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [f"{scripts}/ray", *_arguments(scratch, ports, cpus)],
                cwd=scratch,
                env=given,
                stdout=stream,
                stderr=stream,
            )
        head = RayHead(f"http://127.0.0.1:{ports[1]}", token, process)
        try:
            _wait_until_it_answers(head, log)
            yield head
        finally:
            _end(process)


def _arguments(scratch: str, ports: list[int], cpus: int) -> list[str]:
    gcs, dashboard, agent, client = ports
    return [
        # Not 127.0.0.1, for which Ray takes the machine's address on the network.
        *("start", "--head", "--block", "--node-ip-address=127.0.0.2", f"--port={gcs}"),
        *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", f"--temp-dir={scratch}/ray"),
        *(f"--num-cpus={cpus}", "--num-gpus=0", "--object-store-memory=80000000", "--disable-usage-stats"),
    ]


def _wait_until_it_answers(head: RayHead, log: Path) -> None:
    """Until it knows of its own host: the dashboard answers before there is anybody to run a job."""
    request = urllib.request.Request(f"{head.address}/api/v0/nodes", headers={"Authorization": f"Bearer {head.token}"})
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and head.process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
            if json.load(answer)["data"]["result"]["total"]:
                return
        time.sleep(0.3)
    raise RuntimeError(f"Ray's dashboard does not answer:\n{log.read_text(errors='replace')[-4000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """All that it started too; jobs run in sessions of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
        for child in [psutil.Process(process.pid), *below]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(below, timeout=10)
    process.wait()


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; held all at once, so that no two are the same."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [int(held.getsockname()[1]) for held in sockets]
