"""Who began something that others may have to finish: a process, and whether it is seen to have ended."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, kw_only=True)
class Claimant:
    """A process, as its own machine knows it."""

    machine: str
    pid: int
    started: float
    """As the system tells it; another process may get the same pid later."""


def this_process() -> Claimant:
    """The process that asks."""
    return Claimant(machine=_machine(), pid=os.getpid(), started=psutil.Process().create_time())


def is_dead(claimant: Claimant) -> bool:
    """Whether a process of this machine is seen to have ended; of other machines' nothing is known."""
    if claimant.machine != _machine():
        return False
    try:
        process = psutil.Process(claimant.pid)
        return process.create_time() != claimant.started or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _machine() -> str:
    """Name of a table of processes: on Linux by boot and namespace, since containers may share their host's name."""
    boot, table = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not boot.exists():
        return platform.node()
    return f"{boot.read_text(encoding='ascii').strip()} {table.stat().st_ino}"
