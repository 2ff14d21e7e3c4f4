"""What needs workers is in tests/test_road.py."""

import contextlib
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.placement import Placement, Workers
from unet_core.errors import TrainingError

pytestmark = pytest.mark.slow


def never() -> None:
    raise AssertionError("there is no silence")


def placed(tmp_path: Path, *, workers: Workers | None = None, ray_address: str | None = None) -> Placement:
    return Placement(
        root=tmp_path,
        tracking_uri="unused",
        experiment="unet",
        ray_address=ray_address,
        workers=workers,
        loader_threads=1,
    )


def test_workers_follow_placement_cores_and_lanes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from pipeline.cluster import Group, choose_group, cluster

    here = placed(tmp_path)
    with cluster(here, 4) as wait_for_cluster:
        import ray

        wait_for_cluster()

        cores = int(ray.cluster_resources()["CPU"])
        assert cores >= 4
        # Nobody else needs it, and an open network is none of its business.
        below = psutil.Process().children(recursive=True)
        places = set()
        for process in [psutil.Process(), *below]:
            # One may end meanwhile.
            with contextlib.suppress(psutil.NoSuchProcess):
                found = process.net_connections("tcp")
                places |= {socket.laddr.ip for socket in found if socket.status == psutil.CONN_LISTEN}
        assert places
        assert places <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
        all_cores = min(64, cores)
        assert choose_group(here, lanes=64, threads=1) == Group(
            least=all_cores, most=all_cores, threads=1, use_gpu=False
        )
        assert choose_group(here, lanes=64, threads=cores).most == 1
        with pytest.raises(TrainingError, match=r"^1 worker with \d+ threads would need more than the cluster has"):
            choose_group(here, lanes=64, threads=2 * cores)
        for asked in (Workers(least=3, most=3), Workers(least=1, most=64)):
            group = choose_group(placed(tmp_path, workers=asked), lanes=64, threads=1)
            assert (group.least, group.most) == (asked.least, asked.most)
        with pytest.raises(TrainingError) as caught:
            choose_group(placed(tmp_path, workers=Workers(least=cores + 1, most=64)), lanes=64, threads=1)
        assert str(caught.value) == (
            f"{cores + 1} workers with 1 thread would need more than the cluster has: {cores} cores, 0 GPUs. Lower "
            "UNET_WORKERS or train.threads_per_worker, or start a larger cluster."
        )
        # A cluster that others started may grow while it trains.
        group = choose_group(placed(tmp_path, ray_address="here"), lanes=64, threads=1)
        assert (group.least, group.most) == (1, 64)
        with caplog.at_level(logging.INFO):
            assert choose_group(here, lanes=2, threads=1).most == 2
        assert f"{cores - 2} of {cores} cores stay idle: more workers need a larger train.lanes (2)" in caplog.text
    assert not ray.is_initialized()


def test_an_address_that_is_none_is_refused_with_what_to_do(tmp_path: Path) -> None:
    from pipeline.cluster import cluster

    with pytest.raises(TrainingError) as caught, cluster(placed(tmp_path, ray_address="nonsense"), 1) as wait:
        wait()
    text = str(caught.value)
    assert text.startswith("Ray cluster can't be reached: nonsense: ")
    assert text.endswith("Start it, correct RAY_ADDRESS, or unset it to train on this machine.")


def test_a_cluster_that_is_away_is_an_error_and_no_endless_wait(tmp_path: Path) -> None:
    """Tracking gives up after five seconds; without a limit Ray tries for minutes."""
    program = (
        "from pathlib import Path\n"
        "from pipeline.cluster import cluster\n"
        "from pipeline.placement import Placement\n"
        "from unet_core.errors import TrainingError\n"
        "try:\n"
        "    with cluster(Placement(root=Path(), tracking_uri='', experiment='', ray_address='127.0.0.1:9',\n"
        "                           workers=None, loader_threads=1), 1) as wait:\n"
        "        wait()\n"
        "except TrainingError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=25
    )
    assert done.stdout.startswith("Ray cluster can't be reached: 127.0.0.1:9: ")


def test_every_line_of_the_journal_is_told_once_in_order(tmp_path: Path) -> None:
    from pipeline.cluster import _follow

    journal = tmp_path / "journal.jsonl"
    journal.write_text('{"step": 1}\n{"step": 2}\n', encoding="utf-8")
    told: list[int] = []
    with _follow(journal, lambda line: told.append(line["step"]), never), journal.open("a", encoding="utf-8") as stream:
        # A line may arrive in pieces.
        for piece in ('{"st', 'ep": 3}', '\n{"step": 4}\n'):
            stream.write(piece)
            stream.flush()
    assert told == [1, 2, 3, 4]


def test_an_unfinished_line_of_the_journal_is_dropped(tmp_path: Path) -> None:
    from pipeline.cluster import _end_at_line

    journal = tmp_path / "journal.jsonl"
    for before, after in (("", ""), ('{"step": 1}\n{"st', '{"step": 1}\n'), ('{"step"', ""), ("1\n2\n", "1\n2\n")):
        journal.write_text(before, encoding="utf-8")
        _end_at_line(journal)
        assert journal.read_text(encoding="utf-8") == after


@pytest.mark.parametrize("damaged", [b"", bytes(20), b'{"step": 2}{"step": 3}', b"\xff\xfe"])
def test_a_damaged_line_of_the_journal_is_passed_over_and_told_of(
    tmp_path: Path, damaged: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    from pipeline.cluster import _end_at_line, _follow

    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(b'{"step": 1}\n' + damaged + b'\n{"step": 4}\n')
    steps: list[int] = []
    with _follow(journal, lambda line: steps.append(line["step"]), never):
        pass
    assert steps == [1, 4]
    assert caplog.messages == [f"a damaged line of the journal is passed over: {journal}"]
    _end_at_line(journal)
    assert journal.read_bytes() == b'{"step": 1}\n{"step": 4}\n'


def test_a_failure_of_an_earlier_attempt_is_over_when_the_next_begins(tmp_path: Path) -> None:
    from pipeline.cluster import _end_at_line

    journal = tmp_path / "journal.jsonl"
    journal.write_text('{"lost": "a worker"}\n{"epoch": 1}\n{"failure": "a shard is damaged"}\n', encoding="utf-8")
    _end_at_line(journal)
    assert journal.read_text(encoding="utf-8") == '{"epoch": 1}\n'


def test_reports_on_a_class_called_failure_stay(tmp_path: Path) -> None:
    from pipeline.cluster import _end_at_line

    journal = tmp_path / "journal.jsonl"
    line = '{"epoch": 1, "validation": {"class_dice": {"failure": 0.5, "crack": 0.7}}}\n'
    journal.write_text(line, encoding="utf-8")
    _end_at_line(journal)
    assert journal.read_text(encoding="utf-8") == line


def test_a_mistake_while_following_the_journal_is_not_lost(tmp_path: Path) -> None:
    from pipeline.cluster import _follow

    journal = tmp_path / "journal.jsonl"
    journal.write_text('{"step": 1}\n', encoding="utf-8")

    def fail(line: dict) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), _follow(journal, fail, never):
        pass


def test_a_silence_is_told_once_until_a_report_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import cluster

    monkeypatch.setattr(cluster, "SILENCE_SECONDS", 0.2)
    journal = tmp_path / "journal.jsonl"
    journal.touch()
    told: list[str] = []
    with cluster._follow(journal, lambda _: told.append("report"), lambda: told.append("silence")):
        for _ in range(2):
            time.sleep(1.6)
            with journal.open("a") as stream:
                stream.write("{}\n")
    assert told == ["silence", "report", "silence", "report"]


def test_workers_without_room_are_waited_for_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program holds the cores that the cluster has: no error, since it may end."""
    from pipeline import cluster

    monkeypatch.setattr(cluster, "SILENCE_SECONDS", 1.0)
    with cluster.cluster(placed(tmp_path), 2) as wait_for_cluster:
        import ray

        wait_for_cluster()
        cores = int(ray.cluster_resources()["CPU"])

        @ray.remote(num_cpus=cores)
        class Other:
            def ready(self) -> bool:
                return True

        other = Other.remote()
        assert ray.get(other.ready.remote())
        group = cluster.Group(least=2, most=2, threads=1, use_gpu=False)

        def free_the_cores() -> None:
            while "will start as soon as there is room" not in caplog.text:
                time.sleep(0.1)
            ray.kill(other)

        thread = threading.Thread(target=free_the_cores)
        thread.start()
        told: list[dict] = []
        cluster.train_group(report_once, {}, group, work_dir=tmp_path / "work", on_report=told.append)
        thread.join()
    assert [(line["workers"], line["samples"]) for line in told] == [(2, [])]
    assert (
        "train: no report for 1 s. In the cluster 0 cores and 0 GPUs are free; 2 workers with 1 thread will start as "
        "soon as there is room."
    ) in caplog.text


def report_once(options: dict) -> None:
    """A worker that has nothing to do."""
    from pipeline import cluster

    cluster.report({"workers": cluster.rank_and_size()[1], "kept": None})
