"""infra/compose.yaml's Ray, by its own command lines and variables, in a network namespace instead of containers."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from benchmarks.hosts import SERVER_ADDRESS, Hosts, network, why_not

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

COMPOSE = Path(__file__).parents[2] / "infra" / "compose.yaml"
TOKEN = "a token of this test, long enough"
COUNT = "import ray; ray.init(log_to_driver=False); print('nodes', len(ray.nodes()), ray.cluster_resources()['CPU'])"


def here(text: str) -> str:
    """A word of the file as it reads here: with every secret given, and the head's name as an address."""
    return re.sub(r"\$\{\w+:\?[^}]*\}", TOKEN, text).replace("ray-head", SERVER_ADDRESS)


SERVICES = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
VARIABLES = {name: here(value) for name, value in SERVICES["ray-head"]["environment"].items()}


def inside(hosts: Hosts, words: list[str], **changes: str) -> tuple[list[str], dict[str, str]]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "UNET_"))}
    program = str(Path(sys.executable).parent / words[0])
    command = [*hosts.beside, program, *map(here, words[1:])]
    return command, {**outside, **VARIABLES, "GLOO_SOCKET_IFNAME": "bridge", "HOME": str(hosts.scratch), **changes}


def ask(hosts: Hosts, words: list[str], **changes: str) -> subprocess.CompletedProcess[str]:
    command, environment = inside(hosts, words, **changes)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=90)


@contextmanager
def service(hosts: Hosts, name: str, *more: str) -> Iterator[None]:
    # A container has one address, by which Ray finds itself, and files of its own.
    own = [f"--node-ip-address={SERVER_ADDRESS}", f"--temp-dir={hosts.scratch / name[4]}"]
    command, environment = inside(hosts, [*SERVICES[name]["command"], *more, *own])
    with (hosts.scratch / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def wait_for(hosts: Hosts, words: list[str], expected: str) -> None:
    deadline = time.monotonic() + 120
    while (done := ask(hosts, words)).returncode or expected not in done.stdout:
        assert time.monotonic() < deadline, done.stdout + done.stderr
        time.sleep(1)


def test_composes_head_and_worker_meet_and_nobody_is_let_in_without_the_token() -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    check = SERVICES["ray-head"]["healthcheck"]["test"][1:]
    with network() as hosts, service(hosts, "ray-head"):
        wait_for(hosts, check, "")
        # A host of its own would find its cores itself.
        with service(hosts, "ray-worker", "--num-cpus=1"):
            wait_for(hosts, ["python", "-c", COUNT], "nodes 2 1.0")
            assert ask(hosts, check, RAY_AUTH_TOKEN="another one, long enough as well").returncode
            refused = ask(hosts, ["python", "-c", COUNT], RAY_AUTH_TOKEN="another one, long enough as well")
            assert refused.returncode
            assert "nodes" not in refused.stdout
            assert TOKEN not in refused.stderr
