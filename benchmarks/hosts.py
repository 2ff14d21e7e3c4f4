"""A Ray cluster of several hosts on one machine: network namespaces on a bridge, for benchmarks and tests.

Each host has an address, a home folder, Ray processes and cores of its own; other files are shared, but for those that
are hidden from all hosts except the head. A link can be cut
and a host killed, as in a real cluster; a server may stand beside them. Needs Linux, root and iproute2.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.workspace import words_of

PORT, DASHBOARD_PORT = 6379, 8265
#: Where a server beside the hosts listens.
SERVER_ADDRESS = "10.88.0.254"
#: What makes the head notice a dead host within seconds; Ray's own values take about a minute when nothing answers.
HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
#: Prints the id of the node that has an address: the cluster's address, then the node's.
FIND_NODE = """
import sys
from ray._raylet import GcsClient
nodes = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10).values()
print(next(node.node_id.hex() for node in nodes if node.node_manager_address == sys.argv[2]))
"""


def why_not() -> str | None:
    """Why there can be no namespaces here, or None."""
    if shutil.which("ip") is None:
        return "no network namespaces: iproute2 (`ip`) is not installed"
    name = f"unet-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespaces: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return None


@dataclass(frozen=True)
class Host:
    """One of the hosts; number 1 is the head."""

    number: int
    namespace: str
    scratch: Path

    @property
    def address(self) -> str:
        """Its address on the bridge."""
        return f"10.88.0.{self.number}"

    def inside(self, *command: str) -> tuple[str, ...]:
        """The command line that runs a command on this host."""
        return ("ip", "netns", "exec", self.namespace, *command)

    def processes(self) -> list[psutil.Process]:
        """All that runs on it."""
        found = []
        for pid in _ip("netns", "pids", self.namespace).split():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def training_workers(self) -> list[psutil.Process]:
        """Its processes of Ray's training workers."""
        return [process for process in self.processes() if "RayTrainWorker" in words_of(process)]

    def kill(self) -> None:
        """End all that runs on it, as a power cut does."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)


@dataclass
class Hosts:
    """The hosts of a cluster."""

    prefix: str
    scratch: Path
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    hosts: list[Host] = field(default_factory=list)
    extra: Mapping[str, str] = field(default_factory=dict)
    """Environment that hosts and drivers have besides, such as a store's credentials; for hosts added later."""
    hidden: Sequence[Path] = ()
    """Folders that only the head is to see; for hosts added later."""
    has_dashboard: bool = False
    """Whether the head takes jobs, at `jobs_address`."""

    @property
    def jobs_address(self) -> str:
        """Of the Jobs API, for all on the bridge."""
        return f"http://{self.hosts[0].address}:{DASHBOARD_PORT}"

    @property
    def beside(self) -> tuple[str, ...]:
        """What stands before the command line of a server that all hosts reach at SERVER_ADDRESS."""
        return ("ip", "netns", "exec", self.prefix)

    @property
    def environment(self) -> dict[str, str]:
        """What a driver on the head needs to reach the cluster."""
        return {**self._common(), "RAY_ADDRESS": f"{self.hosts[0].address}:{PORT}"}

    def add(self, cpus: int = 1) -> Host:
        """Plug in one more host and start Ray on it; the first one is the head."""
        number = len(self.hosts) + 1
        host = Host(number, f"{self.prefix}h{number}", self.scratch / f"h{number}")
        self.hosts.append(host)
        host.scratch.mkdir()
        inner, outer = f"{self.prefix}i{number}", self._link(host)
        _ip("netns", "add", host.namespace)
        _ip("-n", self.prefix, "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", host.namespace)
        _ip("-n", self.prefix, "link", "set", outer, "master", "bridge", "up")
        for words in (
            ("link", "set", inner, "name", "eth0"),
            ("addr", "add", f"{host.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", host.namespace, *words)
        self._start_ray(host, cpus)
        return host

    def cut(self, host: Host) -> None:
        """Take the host off the network; nobody is told."""
        _ip("-n", self.prefix, "link", "set", self._link(host), "down")

    def drain(self, host: Host) -> None:
        """Tell it to go, as the owner of a spot machine does some time before he takes it back."""
        head = f"{self.hosts[0].address}:{PORT}"
        # Named: the command would take the head, whose processes are those of this machine as well.
        node_id = self._run_on(host, sys.executable, "-c", FIND_NODE, head, host.address).strip()
        ray = str(Path(sys.executable).parent / "ray")
        words = ("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test", "--deadline-remaining-seconds=120")
        self._run_on(host, ray, "drain-node", f"--address={head}", f"--node-id={node_id}", *words)

    def mend(self, host: Host) -> None:
        """Plug it in again."""
        _ip("-n", self.prefix, "link", "set", self._link(host), "up")

    def training_workers(self) -> list[psutil.Process]:
        """The processes of Ray's training workers on all hosts."""
        return [worker for host in self.hosts for worker in host.training_workers()]

    def remove_all(self) -> None:
        """End everything and take the namespaces away."""
        for host in self.hosts:
            host.kill()
        time.sleep(0.2)
        for namespace in (*(host.namespace for host in self.hosts), self.prefix):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)

    def _run_on(self, host: Host, *command: str) -> str:
        done = subprocess.run(
            host.inside(*command),
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode:
            raise RuntimeError(f"host {host.number}: {command[0]}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def _link(self, host: Host) -> str:
        return f"{self.prefix}o{host.number}"

    def _common(self) -> dict[str, str]:
        # Gloo would take the address that the host's name resolves to, which is the same on all of these.
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "GLOO_SOCKET_IFNAME": "eth0"}
        return {**self.extra, **own}

    def _hiding(self, host: Host) -> tuple[str, ...]:
        """What stands before a command that is not to see what is hidden; `ip netns exec` has given it own mounts."""
        if host is self.hosts[0]:
            return ()
        empty = ('mount -t tmpfs tmpfs "$1" && shift && exec "$@"', "sh")
        return tuple(word for folder in self.hidden for word in ("sh", "-c", *empty, str(folder)))

    def _start_ray(self, host: Host, cpus: int) -> None:
        where = [f"--address={self.hosts[0].address}:{PORT}"]
        if host is self.hosts[0]:
            where = ["--head", f"--port={PORT}", f"--include-dashboard={str(self.has_dashboard).lower()}"]
            where += [f"--dashboard-host={host.address}", f"--dashboard-port={DASHBOARD_PORT}"]
        scripts = str(Path(sys.executable).parent)
        outside = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "UNET_", "MLFLOW_"))}
        done = subprocess.run(
            host.inside(
                *self._hiding(host),
                *(f"{scripts}/ray", "start", *where, f"--node-ip-address={host.address}", f"--num-cpus={cpus}"),
                *("--num-gpus=0", "--object-store-memory=80000000", f"--temp-dir={host.scratch}"),
                "--disable-usage-stats",
            ),
            env={
                **outside,
                **self._common(),
                **HEALTH_CHECKS,
                # Jobs say `python`.
                "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
                "RAY_USAGE_STATS_ENABLED": "0",
                "HOME": str(host.scratch),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode:
            raise RuntimeError(f"Ray does not start on host {host.number}:\n{done.stdout}{done.stderr}")


@contextlib.contextmanager
def network() -> Iterator[Hosts]:
    """A network for hosts that are to be added; nothing of all is left afterwards, whatever happens."""
    prefix = f"u{secrets.token_hex(2)}"
    # Unix sockets lie below: their paths must be short.
    with tempfile.TemporaryDirectory(prefix="u", ignore_cleanup_errors=True) as scratch:
        hosts = Hosts(prefix, Path(scratch))
        try:
            _ip("netns", "add", prefix)
            _ip("-n", prefix, "link", "add", "bridge", "type", "bridge")
            _ip("-n", prefix, "addr", "add", f"{SERVER_ADDRESS}/24", "dev", "bridge")
            for link in ("bridge", "lo"):
                _ip("-n", prefix, "link", "set", link, "up")
            yield hosts
        finally:
            hosts.remove_all()


@contextlib.contextmanager
def ray_hosts(count: int) -> Iterator[Hosts]:
    """A cluster of hosts with one core each."""
    with network() as hosts:
        for _ in range(count):
            hosts.add()
        yield hosts


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
