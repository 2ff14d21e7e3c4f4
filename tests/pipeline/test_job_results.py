"""What a job has made for git, on its way home."""

import base64
import gzip
import json
from pathlib import Path

import pytest

from pipeline.job_results import Result, ResultReader, find_lost, find_results, note_tree, snapshot, take_home, to_lines
from unet_core.errors import DataError, StorageError

DVC = """
stages:
  train:
    cmd: x
    outs: [models/final, {data/shards: {persist: true}}]
    metrics: [{metrics/train.json: {cache: false}}]
    plots: [{plots/curves.csv: {x: step}}]
  register:
    cmd: x
    outs: [{models/receipt.json: {cache: false}}]
  report:
    cmd: x
    outs: [reports/report.html]
"""


def put(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """The tree as it came to the cluster."""
    root = tmp_path / "cluster"
    put(root, "dvc.yaml", DVC)
    put(root, "params.yaml", "old")
    put(root, "dvc.lock", "old")
    put(root, "metrics/ingest.json", "old")
    return root


def through_a_log(results: list[Result]) -> tuple[Result, ...]:
    reader = ResultReader()
    text = "".join(f"{line}\n" for line in to_lines(results))
    # Ray hands a log over in pieces that end anywhere.
    shown = "".join(reader.read(text[start : start + 700]) for start in range(0, len(text), 700))
    assert shown + reader.finish() == ""
    assert reader.results is not None
    return reader.results


def test_what_git_is_to_have_comes_home_and_what_dvc_keeps_does_not(cluster: Path, tmp_path: Path) -> None:
    before = snapshot(cluster)
    wanted = {"dvc.lock", "metrics/train.json", "models/receipt.json", "arrivals/raw.jsonl.dvc", "reports/search.yaml"}
    of_dvc = {"models/final/model.json", "reports/report.html", "plots/curves.csv", "data/a.tar", "arrivals/raw.jsonl"}
    for name in (*wanted, *of_dvc, "pipeline/evil.py"):
        put(cluster, name, f"new {name}")
    results, left = find_results(cluster, before)
    assert left == []
    home = tmp_path / "home"
    put(home, "dvc.lock", "old")
    names = take_home(home, through_a_log(results), aside=home / ".unet" / "jobs" / "j")
    assert set(names) == wanted
    written = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    assert written == {*wanted, ".unet/jobs/j/taken.json"}
    assert all((home / name).read_text() == f"new {name}" for name in wanted)
    # Once more, as `unet attach` does.
    assert take_home(home, results, aside=home / "aside") == []


def test_an_edit_made_meanwhile_is_kept_and_nothing_else_is_written(cluster: Path, tmp_path: Path) -> None:
    before = snapshot(cluster)
    put(cluster, "dvc.lock", "new")
    put(cluster, "metrics/train.json", "new")
    results, _ = find_results(cluster, before)
    home = tmp_path / "home"
    put(home, "dvc.lock", "edited")
    with pytest.raises(StorageError) as caught:
        take_home(home, results, aside=home / ".unet" / "jobs" / "j")
    assert str(caught.value) == (
        "changed here while the job ran: dvc.lock. Your files stay as they are; the job's lie in .unet/jobs/j. Compare "
        "them, and copy what you want."
    )
    assert (home / "dvc.lock").read_text() == "edited"
    assert not (home / "metrics").exists()
    assert (
        (home / ".unet/jobs/j/dvc.lock").read_text() == (home / ".unet/jobs/j/metrics/train.json").read_text() == "new"
    )


def test_what_a_running_job_sent_is_no_edit_when_it_has_ended(cluster: Path, tmp_path: Path) -> None:
    before = snapshot(cluster)
    home = tmp_path / "home"
    put(home, "dvc.lock", "old")
    for text in ("shards", "shards, model"):
        put(cluster, "dvc.lock", text)
        assert take_home(home, find_results(cluster, before)[0], aside=home / ".unet" / "jobs" / "j") == ["dvc.lock"]
        assert (home / "dvc.lock").read_text() == text
    put(home, "dvc.lock", "edited")
    with pytest.raises(StorageError, match=r"^changed here while the job ran: dvc\.lock\. "):
        take_home(home, find_results(cluster, before)[0], aside=home / ".unet" / "jobs" / "j")


def test_reports_of_an_earlier_job_are_no_edit(cluster: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    put(home, "dvc.yaml", DVC)
    put(home, "reports/promotion.html", "of the job before, and never sent")
    before = snapshot(cluster)
    put(cluster, "reports/promotion.html", "new")
    results, _ = find_results(cluster, before)
    aside = home / ".unet" / "jobs" / "j"
    note_tree(home, aside=aside)
    assert take_home(home, results, aside=aside) == ["reports/promotion.html"]
    assert (home / "reports/promotion.html").read_text() == "new"
    put(home, "reports/promotion.html", "edited")
    with pytest.raises(StorageError, match=r"^changed here while the job ran: reports/promotion\.html\. "):
        take_home(home, results, aside=aside)


def test_the_last_whole_results_count_and_the_lines_of_people_stay(cluster: Path) -> None:
    before = snapshot(cluster)
    put(cluster, "dvc.lock", "shards")
    first = [*to_lines(find_results(cluster, before)[0])]
    put(cluster, "dvc.lock", "".join(f"{number} {number**3}\n" for number in range(5000)))
    second = [*to_lines(find_results(cluster, before)[0])]
    assert len(second) > 2
    text = "\n".join(["one", *first, "two", *second[:-1], "three", *first, "::result is a word", "four"])
    reader = ResultReader()
    assert reader.read(text) + reader.finish() == "one\ntwo\nthree\n::result is a word\nfour\n"
    assert reader.results is not None
    assert base64.b64decode(reader.results[0].content) == b"shards"


def test_results_behind_a_line_without_an_end_count_and_those_that_were_cut_are_known(cluster: Path) -> None:
    before = snapshot(cluster)
    put(cluster, "dvc.lock", "shards")
    (line,) = to_lines(find_results(cluster, before)[0])
    reader = ResultReader()
    assert reader.read(f"50 %{line}\nend\n") == "50 %\nend\n"
    assert reader.results is not None
    assert not reader.is_cut
    reader.read("::result 1/2 AAAA\n")
    assert reader.is_cut
    assert base64.b64decode(reader.results[0].content) == b"shards"


@pytest.mark.parametrize("text", ["one\n::result end\n", "one\n::result end", "on", "one\n::result 1/2 AAAA\n"])
@pytest.mark.parametrize("step", [1, 5, 100])
def test_a_log_without_its_last_line_is_not_whole(text: str, step: int) -> None:
    reader = ResultReader()
    shown = "".join(reader.read(text[start : start + step]) for start in range(0, len(text), step)) + reader.finish()
    assert shown in ("one\n", "on\n")
    assert reader.has_ended == ("end" in text)


def test_the_last_line_is_known_behind_words_without_an_end() -> None:
    reader = ResultReader()
    assert reader.read("words::result end\n") == "words\n"
    assert reader.has_ended


def test_no_line_is_so_long_that_ray_would_cut_it(cluster: Path) -> None:
    before = snapshot(cluster)
    (cluster / "dvc.lock").write_bytes(bytes(range(256)) * 2000)
    assert max(map(len, to_lines(find_results(cluster, before)[0]))) < 5000


def test_what_is_too_large_is_named(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.job_results.MAX_BYTES", 10)
    before = snapshot(cluster)
    put(cluster, "dvc.lock", "new")
    put(cluster, "reports/tune.png", "x" * 11)
    results, left = find_results(cluster, before)
    assert [result.name for result in results] == ["dvc.lock"]
    assert left == ["reports/tune.png"]


def test_what_neither_log_nor_dvc_takes_home_is_known(cluster: Path) -> None:
    sent = {path for path in cluster.rglob("*") if path.is_file()}
    for name in (
        "reports/masks/a.png",
        "data/shards/a.tar",
        "models/receipt.json",
        ".dvc/cache/a",
        "pipeline/__pycache__/a",
    ):
        put(cluster, name, "new")
    assert find_lost(cluster, sent) == []
    put(cluster, "predictions/masks/b.png", "new")
    put(cluster, "predictions/masks/a.png", "new")
    assert find_lost(cluster, sent) == ["predictions/masks/a.png", "predictions/masks/b.png"]


@pytest.mark.parametrize("name", ["../dvc.lock", "/etc/passwd", "pipeline/cli.py", "metrics/../../x", ".git/config"])
def test_a_place_where_no_results_lie_is_refused(name: str) -> None:
    lines = to_lines([Result(name=name, before=None, content="")])
    with pytest.raises(DataError, match=r"^the job's results can't be read: no place of a result: '"):
        ResultReader().read("".join(f"{line}\n" for line in lines))


def test_damaged_results_are_refused() -> None:
    body = base64.b64encode(gzip.compress(json.dumps([{"name": "dvc.lock"}]).encode())).decode()
    for text in (body, body[:-8], "AAAA"):
        with pytest.raises(DataError, match=r"^the job's results can't be read: .* Run `unet attach` once more\.$"):
            ResultReader().read(f"::result 1/1 {text}\n")
