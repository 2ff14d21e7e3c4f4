import os
import signal
from functools import partial
from pathlib import Path

import pytest

from pipeline.parallel import FEW, map_parallel
from pipeline.placement import Placement


def placed(*, processes: int = 2, ray_address: str | None = None) -> Placement:
    return Placement(
        root=Path("/nowhere"),
        tracking_uri="unused",
        experiment="unet",
        ray_address=ray_address,
        workers=None,
        loader_threads=1,
        processes=processes,
    )


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def crash(number: int, killers: tuple[int, ...]) -> int:
    if number in killers:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def run(function, items, placement: Placement | None = None):
    place = placement or placed()
    return list(map_parallel(function, items, placement=place, label="test", on_death=lambda item: -item))


def test_few_items_stay_in_this_process() -> None:
    results = run(square, range(FEW))
    assert results == [(number * number, os.getpid()) for number in range(FEW)]
    assert run(square, []) == []


def test_one_process_is_this_one() -> None:
    assert {pid for _, pid in run(square, range(100), placed(processes=1))} == {os.getpid()}


def test_many_items_come_in_order_from_other_processes() -> None:
    results = run(square, range(200))
    assert [square for square, _ in results] == [number * number for number in range(200)]
    pids = {pid for _, pid in results}
    assert os.getpid() not in pids
    assert len(pids) <= 2


def test_an_exception_in_a_worker_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        run(partial(divmod, 1), range(100))


@pytest.mark.slow
@pytest.mark.parametrize("killers", [(0,), (57, 58), (99,)])
def test_an_item_that_kills_its_process_is_named_and_the_others_are_done(killers: tuple[int, ...]) -> None:
    results = run(partial(crash, killers=killers), range(100))
    assert results == [-number if number in killers else number for number in range(100)]


@pytest.mark.slow
def test_a_cluster_gives_the_same_results_and_survives_a_death() -> None:
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        place = placed(ray_address=nodes.address)
        results = run(square, range(100), place)
        assert [square for square, _ in results] == [number * number for number in range(100)]
        assert os.getpid() not in {pid for _, pid in results}
        found = run(partial(crash, killers=(57,)), range(100), place)
        assert found == [-57 if number == 57 else number for number in range(100)]
        assert not ray.is_initialized()
    finally:
        nodes.shutdown()
