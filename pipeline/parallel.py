"""One function over many items on all cores, or on all nodes of a cluster: the door to joblib.

How many processes there are changes no result, only when it is there.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from pipeline.placement import Placement
from pipeline.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")

#: So few items stay in this process: two workers take 1 to 2 s to start, as long as 100 pairs of an ordinary size.
FEW = 48
#: Work of one process that others should share: they take some seconds to start.
WORTH_SECONDS = 8.0
#: Items a process that are given out at a time. Small blocks show progress and bound the memory; their ends, where
#: processes wait for the last one, cost about 3 %.
BLOCK = 16


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who does the work."""

    backend: str
    count: int
    deaths: tuple[type[Exception], ...]
    """What is raised when a worker process ends in the middle of its work."""


def map_parallel(  # noqa: PLR0913 each says one thing of the work
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    placement: Placement,
    label: str,
    unit: str = "samples",
    on_death: Callable[[Item], Result],
    few: int = FEW,
) -> Iterator[Result]:
    """Results in the order of the items; a progress bar says `label` and counts in `unit`.

    `function` must be a module's own function, or a partial of one. Where an item kills the process that works on it
    (a crash inside a decoder, no memory), `on_death` gives its result, and the others' results are as without it. Up to
    `few` items stay in this process, which nothing guards.
    """
    shown = Progress(total=len(items), label=label, unit=unit)
    try:
        if len(items) <= few or (placement.ray_address is None and _count_here(placement) == 1):
            for item in items:
                yield function(item)
                shown.advance()
            return
        with _find_workers(placement) as workers:
            for results in _blocks(function, items, workers, on_death, size=BLOCK * workers.count):
                shown.advance(len(results))
                yield from results
    finally:
        shown.close()


@contextmanager
def _find_workers(placement: Placement) -> Iterator[Workers]:
    if placement.ray_address is None:
        yield Workers(backend="loky", count=_count_here(placement), deaths=(TerminatedWorkerError,))
        return
    # Importing Ray takes seconds.
    from pipeline.cluster import joblib_backend

    with joblib_backend(placement) as (name, cores, deaths):
        # With one, joblib would work in this process.
        yield Workers(backend=name, count=max(2, placement.processes or cores), deaths=deaths)


def _count_here(placement: Placement) -> int:
    # joblib also sees a container's limit.
    count: int = placement.processes or joblib.cpu_count()
    return count


def _blocks(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: Workers,
    on_death: Callable[[Item], Result],
    size: int,
) -> Iterator[list[Result]]:
    """Results of `size` items at a time; a list, since Ray's backend can't give them one by one."""
    start = 0
    while start < len(items):
        try:
            with joblib.Parallel(n_jobs=workers.count, backend=workers.backend) as parallel:
                while start < len(items):
                    results = parallel(joblib.delayed(function)(item) for item in items[start : start + size])
                    start += size
                    yield results
        except workers.deaths:
            # Nobody says whose work it was; one by one, the culprit can't be mistaken.
            if size > 1:
                yield from _blocks(function, items[start : start + size], workers, on_death, size=1)
            else:
                yield [on_death(items[start])]
            start += size
