"""MLflow's own server on loopback, for tests that take it away in the middle of something."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from pipeline import tracking
from unet_core.errors import RegistryError


class TrackingServer:
    """Runs and models of a SQLite file in `folder`; it can be ended and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            self.port = held.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, inside: tuple[str, ...] = ()) -> None:
        """Start it, in the namespace that `inside` enters; it answers some seconds later."""
        places = (f"--backend-store-uri=sqlite:///{self._folder}/mlflow.db", f"--artifacts-destination={self._folder}")
        words = (sys.executable, "-m", "mlflow", "server", *places, "--host=127.0.0.1", "--workers=1")
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                (*inside, *words, f"--port={self.port}"), stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> tracking.Client:
        """A client, once it answers."""
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with contextlib.suppress(RegistryError):
                return tracking.connect(self.uri)
            time.sleep(0.5)
        raise AssertionError((self._folder / "server.log").read_text())

    def kill(self) -> None:
        """End it as a power cut does."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
