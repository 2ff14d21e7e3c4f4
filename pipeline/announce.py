"""Others are told of a new champion: the command that UNET_ON_PROMOTION names."""

import json
import logging
import subprocess
from collections.abc import Sequence
from dataclasses import asdict

from pipeline.history import Entry

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 60


def announce(command: Sequence[str], name: str, entry: Entry) -> None:
    """Run the command with the move as JSON on its standard input; what fails is told and undoes no promotion."""
    if not command:
        return
    shown = ("action", "version", "before", "reason", "by", "time")
    told = {"model": name} | {key: value for key, value in asdict(entry).items() if key in shown}
    try:
        done = subprocess.run(command, input=json.dumps(told), text=True, check=False, timeout=TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("UNET_ON_PROMOTION was not told of version %s: %s", entry.version, error)
        return
    if done.returncode:
        log.warning("UNET_ON_PROMOTION ended with exit code %d for version %s", done.returncode, entry.version)
