"""Against real SQLite stores."""

import threading

import pytest

from pipeline import tracking
from pipeline.append_log import AppendLog, find_log, open_log
from unet_core.errors import RegistryError

pytestmark = pytest.mark.slow


def test_a_log_is_made_once_and_found_again(client) -> None:
    assert find_log(client, "unet promotions") is None
    made = open_log(client, "unet promotions")
    assert open_log(client, "unet promotions").run_id == made.run_id == find_log(client, "unet promotions").run_id
    assert open_log(client, "other promotions").run_id != made.run_id


def test_a_key_is_claimed_once_and_never_changed(client) -> None:
    log = open_log(client, "log")
    assert log.claim("000001", "first")
    assert not log.claim("000001", "second")
    assert log.claim("000001", "first"), "an answer that was lost is asked for again"
    assert log.claim("000002", "second")
    assert log.read() == {"000001": "first", "000002": "second"}


def test_a_log_that_was_deleted_meanwhile_is_an_error_and_no_claim_of_others(client) -> None:
    log = open_log(client, "log")
    assert log.claim("000001", "first")
    client.delete_run(log.run_id)
    with pytest.raises(RegistryError, match=r"^MLflow refused: writing a log: .* must be in the 'active' state"):
        log.claim("000002", "second")


def in_threads(count: int, work) -> list:
    results = [None] * count
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        barrier.wait()
        results[number] = work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_of_many_that_claim_one_key_at_once_one_gets_it(client, tree) -> None:
    title, uri = "log", f"sqlite:///{tree.root / 'mlflow.db'}"
    open_log(client, title)
    logs = [open_log(tracking.connect(uri), title) for _ in range(6)]
    for key in ("000001", "000002", "000003"):
        won = in_threads(6, lambda number, key=key: logs[number].claim(key, f"of {number}"))
        assert sum(won) == 1
        assert logs[0].read()[key] == f"of {won.index(True)}"


def test_of_many_that_make_a_log_at_once_all_get_the_same(client, tree) -> None:
    clients = [tracking.connect(f"sqlite:///{tree.root / 'mlflow.db'}") for _ in range(4)]
    runs = in_threads(4, lambda number: open_log(clients[number], "log").run_id)
    assert len(set(runs)) == 1
    assert [found.name for found in client.search_experiments() if found.name.startswith("log")] == ["log"]


def test_a_log_that_was_deleted_is_named_and_not_begun_anew(client) -> None:
    open_log(client, "unet promotions")
    number = client.get_experiment_by_name("unet promotions").experiment_id
    client.delete_experiment(number)
    with pytest.raises(RegistryError) as caught:
        open_log(client, "unet promotions")
    assert str(caught.value) == (
        f"a log was deleted in MLflow: experiment 'unet promotions' (id {number}). Restore it there "
        "(`mlflow experiments restore`, `mlflow runs restore`)."
    )
    client.restore_experiment(number)
    assert isinstance(open_log(client, "unet promotions"), AppendLog)
