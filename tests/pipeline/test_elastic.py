"""What Ray's controller does for us. With real workers it is tested in test_road.py, tests/cluster and tests/chaos."""

import contextlib
import json
import resource
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from unet_core.errors import DataError, TrainingError

pytestmark = pytest.mark.slow


class Lost(Exception):
    """As Ray tells of a dead worker."""

    health_check_failure = "The actor died."


def told(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]


def test_the_journal_keeps_what_the_first_rank_tells(tmp_path: Path) -> None:
    from pipeline.elastic import Journal

    Journal(tmp_path / "journal").after_report(None, [{"epoch": 1}, {"epoch": 9}], None)
    (line,) = told(tmp_path / "journal")
    assert line["epoch"] == 1
    assert line["time_ms"] > 0


def test_the_journal_joins_the_samples_of_all_ranks_in_the_order_of_lanes(tmp_path: Path) -> None:
    from pipeline.elastic import Journal

    ranks = [{"samples": [["a0", "a1"], ["b0", "b1"]]}, {"samples": [["a2"], ["b2"]]}, {"samples": [["a3"], ["b3"]]}]
    Journal(tmp_path / "journal").after_report(None, ranks, None)
    (line,) = told(tmp_path / "journal")
    assert line["samples"] == [["a0", "a1", "a2", "a3"], ["b0", "b1", "b2", "b3"]]


def test_reports_that_a_full_disk_refused_are_written_when_there_is_room(small_disk: Path) -> None:
    from pipeline.elastic import Journal

    journal = Journal(small_disk / "journal")
    journal.after_report(None, [{"epoch": 0}], None)
    filler = small_disk / "others"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    # What the journal's last page has room for is written, also a part of a line.
    for epoch in range(1, 200):
        journal.after_report(None, [{"epoch": epoch}], None)
    journal.after_exception(None, {0: Lost()})
    assert not (small_disk / "journal").read_bytes().endswith(b"\n")
    filler.unlink()
    journal.after_report(None, [{"epoch": 200}], None)
    lines = told(small_disk / "journal")
    assert [line.get("epoch", line.get("lost")) for line in lines] == [
        *range(200), "a worker was lost, or its host.", 200,
    ]  # fmt: skip


def test_a_line_that_was_written_in_part_goes_on_where_it_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from pipeline.elastic import Journal

    journal = Journal(tmp_path / "journal")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for most in (10, 25, 25, 60):
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
            journal.after_report(None, [{"epoch": most}], None)
            assert (tmp_path / "journal").stat().st_size == most
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    journal.after_report(None, [{"epoch": 99}], None)
    assert [line["epoch"] for line in told(tmp_path / "journal")] == [10, 25, 25, 60, 99]
    assert caplog.messages[0] == (
        f"the journal can't be written, the next report tries again: {tmp_path}/journal: File too large"
    )


def test_a_foreseen_mistake_of_any_rank_ends_the_training_with_its_own_sentence(tmp_path: Path) -> None:
    from pipeline.elastic import Journal

    mistake = DataError("a shard is damaged")
    with pytest.raises(DataError):
        Journal(tmp_path / "journal").after_exception(None, {0: RuntimeError("Connection closed"), 2: mistake})
    assert [line.get("failure") for line in told(tmp_path / "journal")] == ["a shard is damaged"]


def test_a_training_that_fails_again_and_again_without_a_new_checkpoint_ends(tmp_path: Path) -> None:
    from pipeline.elastic import MAX_FAILURES, Journal

    journal = Journal(tmp_path / "journal")
    for kept in (5, 10):
        for _ in range(MAX_FAILURES):
            journal.after_exception(None, {1: RuntimeError("out of memory")})
        journal.after_report(None, [{"epoch": 1, "kept": kept}, {"epoch": 1, "kept": None}], None)
    for _ in range(MAX_FAILURES):
        journal.after_exception(None, {1: RuntimeError("out of memory")})
    # A report without a new checkpoint is no progress: what follows it would be lost again.
    for kept in (None, 10):
        journal.after_report(None, [{"epoch": 1, "kept": kept}], None)
    with pytest.raises(TrainingError) as caught:
        journal.after_exception(None, {1: RuntimeError("out of memory")})
    assert str(caught.value) == (
        "training failed 4 times without a new checkpoint: a worker failed: out of memory "
        "The next `dvc repro` goes on from the last checkpoint."
    )
    assert told(tmp_path / "journal")[-1]["failure"] == str(caught.value)


def test_a_lost_worker_is_told_of_and_not_what_the_others_say_of_it(tmp_path: Path) -> None:
    from pipeline.elastic import Journal

    journal = Journal(tmp_path / "journal")
    journal.after_exception(None, {0: RuntimeError("gloo: Connection closed by peer"), 1: Lost("health check")})
    journal.after_exception(None, {0: RuntimeError("gloo: Connection closed by peer"), 1: ValueError("first\nlast")})
    assert [line["lost"] for line in told(tmp_path / "journal")] == [
        "a worker was lost, or its host.",
        "a worker failed: last",
    ]


def test_a_host_that_was_told_to_go_is_no_failure(tmp_path: Path) -> None:
    from pipeline.elastic import MAX_FAILURES, HostLeavesError, Journal

    journal = Journal(tmp_path / "journal")
    for _ in range(MAX_FAILURES + 1):
        journal.after_exception(None, {0: HostLeavesError(), 1: HostLeavesError()})
    assert {line["lost"] for line in told(tmp_path / "journal")} == {"a host was told to go."}


def test_hosts_that_take_no_connection_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import elastic

    with socket.create_server(("127.0.0.1", 0)) as alive, socket.socket() as dead:
        # Bound, but nobody listens.
        dead.bind(("127.0.0.1", 0))
        nodes = [
            {"NodeID": name, "Alive": is_alive, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port}
            for name, is_alive, port in (
                ("well", True, alive.getsockname()[1]),
                ("killed", True, dead.getsockname()[1]),
                ("known to be dead", False, alive.getsockname()[1]),
            )
        ]
        monkeypatch.setattr(elastic.ray, "nodes", lambda: nodes)
        assert elastic.answering_hosts() == {"well"}


def test_a_host_that_was_told_to_go_has_no_room_for_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train import ScalingConfig

    from pipeline import elastic

    policy = elastic.GroupSize(ScalingConfig(num_workers=(1, 4), elastic_resize_monitor_interval_s=0))
    room = {name: {"CPU": 1.0} for name in ("well", "silent", "leaving")}
    # As when a controller has started; what it asks is answered below.
    policy._coordinator_client, policy._requester_id = MagicMock(), "test"
    monkeypatch.setattr(elastic.ray, "get", lambda *_, **__: room)
    monkeypatch.setattr(elastic, "answering_hosts", lambda: {"well", "leaving"})
    monkeypatch.setattr(elastic, "leaving_hosts", lambda: {"leaving"})
    assert policy._get_reserved_resources() == {"well": {"CPU": 1.0}}


@pytest.fixture
def group_size(monkeypatch: pytest.MonkeyPatch):
    """A policy of 1 to 4 workers in a cluster that has room for as many as the test says."""
    from ray.train import ScalingConfig

    from pipeline import elastic

    policy = elastic.GroupSize(ScalingConfig(num_workers=(1, 4), elastic_resize_monitor_interval_s=0))
    room = {"workers": 1}
    monkeypatch.setattr(policy, "_maybe_send_resource_request", lambda: None)
    monkeypatch.setattr(policy, "_get_reserved_resources", lambda: {"host": {"CPU": float(room["workers"])}})
    monkeypatch.setattr(elastic, "WAIT_SECONDS", 0.0)
    return policy, room


def status(*, kept: int | None) -> Any:
    report = SimpleNamespace(metrics={"kept": kept})
    return SimpleNamespace(worker_statuses={0: SimpleNamespace(training_report=report)})


def test_a_group_starts_with_what_is_there(group_size) -> None:
    policy, room = group_size
    for room["workers"], started in ((1, 1), (3, 3), (9, 4)):
        assert policy.make_decision_for_non_running_worker_group().num_workers == started
    room["workers"] = 0
    assert not hasattr(policy.make_decision_for_non_running_worker_group(), "num_workers")


def test_a_group_grows_right_after_a_checkpoint_only(group_size) -> None:
    policy, room = group_size
    state = SimpleNamespace(num_workers=2, start_time=0.0)
    room["workers"] = 3
    assert not hasattr(policy.make_decision_for_running_worker_group(state, status(kept=None)), "num_workers")
    assert policy.make_decision_for_running_worker_group(state, status(kept=5)).num_workers == 3


def test_a_group_that_is_well_does_not_shrink(group_size) -> None:
    policy, room = group_size
    state = SimpleNamespace(num_workers=3, start_time=0.0)
    for room["workers"] in (0, 2, 3):
        decision = policy.make_decision_for_running_worker_group(state, status(kept=5))
        assert not hasattr(decision, "num_workers")
