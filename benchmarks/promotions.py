"""Promotions and rollbacks by many processes at once, while others read: is any lost, is there always a champion?

python -m benchmarks.promotions --moves 1000 --processes 8
python -m benchmarks.promotions --uri postgresql://...      an empty database of your own
"""

import argparse
import contextlib
import itertools
import multiprocessing
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks.postgres import postgres
from benchmarks.workspace import print_result
from pipeline import tracking
from pipeline.history import Entry, Move, champions, history, move_champion

NAME = "unet"
NUM_VERSIONS = 5
READERS = 2
#: What must be 0.
WRONG = ("lost", "doubled", "unasked", "out_of_order", "reads_without_champion")
#: A process that is killed by its own hand when it reaches a function, before or after it.
DIES = """
import os, signal, sys
from pipeline import append_log, history, tracking
uri, version, place, when = sys.argv[1:]
module, name = {"claim": (append_log.AppendLog, "claim"), "alias": (tracking, "set_alias")}[place.split()[0]]
whole, calls = getattr(module, name), []
def dies(*arguments):
    calls.append(arguments)
    hit = place != "claim done" or len(calls) == 2
    if hit and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = whole(*arguments)
    if hit:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(module, name, dies)
move = history.Move(action="promoted", version=version, reason="killed on the way")
history.move_champion(tracking.connect(uri), "unet", lambda _: move)
"""


def main() -> None:
    """Run and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgres", action="store_true", help="instead of a SQLite file")
    parser.add_argument("--moves", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=8)
    parsed = parser.parse_args()
    with postgres() if parsed.postgres else sqlite() as uri:
        make_versions(uri)
        print_result(measure(uri, moves=parsed.moves, processes=parsed.processes))


@contextlib.contextmanager
def sqlite() -> Iterator[str]:
    """The URI of a store in a file."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/mlflow.db"


def make_versions(uri: str) -> None:
    """A registered model with some versions (of nothing), the first of them champion."""
    client = tracking.connect(uri)
    client.create_registered_model(NAME)
    for _ in range(NUM_VERSIONS):
        client.create_model_version(NAME, source="s3://nowhere/model", tags={})
    move_champion(client, NAME, lambda _: Move(action="forced", version="1", reason="the first"))


def measure(uri: str, *, moves: int, processes: int) -> Mapping[str, Any]:
    """What was lost, doubled or missing."""
    context = multiprocessing.get_context("spawn")
    started = time.perf_counter()
    with ProcessPoolExecutor(processes + READERS, mp_context=context) as pool, context.Manager() as manager:
        stop = manager.Event()
        reading = [pool.submit(read_champion, uri, stop) for _ in range(READERS)]
        shares = [moves // processes + (number < moves % processes) for number in range(processes)]
        moving = [pool.submit(move_often, uri, count, seed) for seed, count in enumerate(shares)]
        made = [identity for future in moving for identity in future.result()]
        stop.set()
        seen = [future.result() for future in reading]
    seconds = time.perf_counter() - started
    entries = history(tracking.connect(uri), NAME)[1:]
    recorded = [entry.identity for entry in entries]
    return {
        "moves": len(made),
        "seconds": round(seconds, 1),
        "lost": len(set(made) - set(recorded)),
        "doubled": len(recorded) - len(set(recorded)),
        "unasked": len(set(recorded) - set(made)),
        "out_of_order": count_out_of_order(entries),
        "reads": sum(reads for reads, _ in seen),
        "reads_without_champion": sum(missing for _, missing in seen),
    }


def move_often(uri: str, count: int, seed: int) -> list[str]:
    """Promote any version or go back, `count` times; the identities of the entries made."""
    client = tracking.connect(uri)
    draw = random.Random(seed)

    def decide(entries: Sequence[Entry]) -> Move:
        line = champions(entries)
        if len(line) > 1 and draw.random() < 0.5:
            return Move(action="rolled back", version=line[-2], reason="")
        version = draw.choice([str(n) for n in range(1, NUM_VERSIONS + 1) if str(n) != line[-1]])
        return Move(action="promoted", version=version, reason="")

    return [move_champion(client, NAME, decide).identity for _ in range(count)]


def read_champion(uri: str, stop: Any) -> tuple[int, int]:
    """Read the alias until told to stop: how often, and how often there was no valid version."""
    client = tracking.connect(uri)
    reads = missing = 0
    while not stop.is_set():
        version = tracking.version_by_alias(client, NAME, tracking.CHAMPION)
        reads += 1
        missing += version is None or not 1 <= int(version.number) <= NUM_VERSIONS
        time.sleep(0.05)
    return reads, missing


def count_out_of_order(entries: Sequence[Entry]) -> int:
    """Entries that do not begin where the one before ended."""
    return sum(later.before != earlier.version for earlier, later in itertools.pairwise(entries))


if __name__ == "__main__":
    main()
