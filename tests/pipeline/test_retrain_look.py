"""A look at real files, git and DVC, before any training; test_retrain.py looks at what trainings leave."""

import subprocess
from pathlib import Path

import psutil
import pytest

from pipeline.arrivals import find_all_pairs, tracked_by
from pipeline.ledger import Changes
from pipeline.params import load_section
from pipeline.placement import read_placement
from pipeline.retrain_look import Look, Paths, _ended_stages, _find_changes, look, make_record
from pipeline.retrain_reasons import Seen
from pipeline.retrain_standing import Standing
from pipeline.retrain_steps import Status
from pipeline.source import IngestConfig
from unet_core.errors import DataError, StorageError

LEDGER, LOCK = Path("arrivals/raw.jsonl"), Path("dvc.lock")
PATHS = Paths(
    accepted=Path("data/accepted.parquet"),
    splits=Path("data/splits.csv"),
    shards=Path("data/shards"),
    model=Path("models/final"),
    receipt=Path("models/receipt.json"),
    metrics=Path("metrics"),
    report=Path("reports/report.html"),
)
NOTHING = Status()
NOWHERE = Standing(
    model="unet", version=None, champion=None, champion_age_days=None, answer=None, memory=None, is_half_moved=False
)
#: As DVC writes it, with what a stage depends on and leaves.
RAN = """schema: '2.0'
stages:
  ingest:
    cmd: unet stage ingest
    deps:
    - path: arrivals/raw.jsonl
      md5: 0123456789abcdef0123456789abcdef
    outs:
    - path: data/catalog.parquet
      md5: 0123456789abcdef0123456789abcdef
  split-by_hand:
    cmd: unet stage split
"""


def git(*words: str) -> None:
    identity = ("-c", "user.name=ada", "-c", "user.email=ada@example.invalid")
    subprocess.run(["git", *identity, *words], check=True, capture_output=True)


@pytest.fixture
def project(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pairs that nobody recorded, in a repository of git and DVC whose pipeline never ran."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    tree.add_pairs(["a", "b"])
    tree.write_recipe(ingest={"source": "./raw/", "ledger": "./arrivals/raw.jsonl"})
    Path(".dvc").mkdir()
    Path(".dvc/config").touch()
    Path("dvc.yaml").write_text(
        "stages:\n"
        "  ingest: {cmd: cp params.yaml out, deps: [params.yaml], outs: [out]}\n"
        "  report: {cmd: cat params.yaml, deps: [params.yaml]}\n"
    )
    git("init", "--quiet")
    git("add", "params.yaml", "dvc.yaml", ".dvc/config")
    git("commit", "--quiet", "--message", "begin")


def look_now(*, may_mend: bool) -> Look:
    placement = read_placement()
    return look(PATHS, placement, make_record(PATHS, placement, None), may_mend=may_mend)


def files_here() -> dict[Path, bytes]:
    apart = (".git", ".dvc", ".dvc-site")
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file() and path.parts[0] not in apart}


def config() -> IngestConfig:
    return load_section("ingest", IngestConfig)


def keys_found(status: Status = NOTHING) -> list[list[str]] | None:
    found = _find_changes(config(), find_all_pairs(config()), status)
    return found and [[line.key for line in lines] for lines in (found.new, found.changed, found.missing)]


# The whole look


@pytest.mark.slow
def test_a_first_look_finds_all_and_makes_nothing(project) -> None:
    before = files_here()
    found = look_now(may_mend=False)
    # Source and ledger as DVC says them, or no reason and no step would know them.
    assert found.seen == Seen(
        source="raw",
        ledger="arrivals/raw.jsonl",
        new=2,
        is_first=True,
        unfinished=["ingest", "report"],
        is_recorded=True,
    )
    assert found.client is None, "a registry is not made by who only looks"
    assert (found.standing.model, found.standing.version, found.standing.champion) == ("unet", None, None)
    assert found.must_add
    assert files_here() == before


@pytest.mark.slow
def test_a_stage_that_ended_once_is_told_by_its_inputs_and_one_that_never_did_is_unfinished(project) -> None:
    LOCK.write_text("schema: '2.0'\nstages:\n  ingest:\n    cmd: another one\n")
    Path("arrivals").mkdir()
    tracked_by(LEDGER).write_text("outs:\n- path: raw.jsonl\n  md5: 0123456789abcdef0123456789abcdef\n")
    found = look_now(may_mend=False)
    assert not found.seen.is_first
    assert list(found.seen.inputs) == ["ingest"]
    assert "dvc.yaml" in found.seen.inputs["ingest"]
    # The ledger's file is no stage.
    assert list(found.seen.unfinished) == ["ingest", "report"]
    assert found.changes is None, "the ledger is not here, and git knows it"
    assert not found.seen.is_recorded


def test_a_source_that_is_not_there_leaves_no_dvc_at_work(project) -> None:
    Path("raw").rename("elsewhere")
    before = psutil.Process().children()
    with pytest.raises(DataError, match="raw"):
        look_now(may_mend=False)
    assert psutil.Process().children() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "may_mend"),
    [
        ("schema: '2.0'\nstages:\n  inge", False),
        ("<<<<<<< HEAD\nschema: '2.0'\n=======\nschema: '1.0'\n>>>>>>> other\n", True),
    ],
    ids=["cut off, of who only looks", "a merge that people have to end"],
)
def test_a_lock_file_that_is_not_to_be_mended_is_told_and_stays(project, text: str, may_mend: bool, client) -> None:
    LOCK.write_text(text)
    with pytest.raises(StorageError, match=r"^DVC can't tell what is stale: .*dvc\.lock"):
        look_now(may_mend=may_mend)
    assert LOCK.read_text() == text


@pytest.mark.slow
def test_a_lock_file_that_ends_before_gits_last_stages_is_gits_again(project, client) -> None:
    whole = "schema: '2.0'\nstages:\n  ingest:\n    cmd: x\n  report:\n    cmd: y\n"
    LOCK.write_text(whole)
    git("add", "dvc.lock")
    git("commit", "--quiet", "--message", "lock")
    cut = whole[: whole.index("  report")]
    LOCK.write_text(cut)
    assert "report" in look_now(may_mend=False).seen.unfinished
    assert LOCK.read_text() == cut
    assert list(look_now(may_mend=True).seen.inputs) == ["ingest", "report"]
    assert LOCK.read_text() == whole
    assert Path(".unet/dvc.lock.damaged").read_text() == cut
    # Also within a character.
    LOCK.write_bytes(cut.encode() + b"    deps: caf\xc3")
    look_now(may_mend=True)
    assert LOCK.read_text() == whole
    # Other stages are people's.
    LOCK.write_text(others := whole.replace("ingest", "intake"))
    look_now(may_mend=True)
    assert LOCK.read_text() == others


@pytest.mark.slow
def test_a_damage_that_is_no_results_is_told_though_results_are_here(project, client) -> None:
    Path("dvc.yaml").write_text("stages: [")
    LOCK.write_text("schema: '2.0'\n")
    with pytest.raises(StorageError, match=r"^DVC can't tell what is stale: .*dvc\.yaml"):
        look_now(may_mend=True)
    assert LOCK.exists()


# What git is to record


def test_results_are_what_the_stages_and_dvc_leave_for_git(tree) -> None:
    tree.write_recipe()
    record = make_record(PATHS, read_placement(), "retrain")
    assert (record.root, record.branch) == (tree.root, "retrain")
    assert record.results == (
        "dvc.lock",
        "arrivals/raw.jsonl.dvc",
        "arrivals/.gitignore",
        "metrics",
        "models/receipt.json",
    )


# What is new in the source


def test_files_are_read_only_where_names_or_dvc_tell_of_a_change(small_data) -> None:
    small_data.turn_file("images", "s03")
    assert keys_found() == [[], [], []]
    assert keys_found(Status(inputs={"ingest": ("params.yaml: masks",)})) == [[], [], []]
    for status in (
        Status(inputs={"ingest": ("raw",)}),
        Status(absent={"arrivals/raw.jsonl.dvc": ("arrivals/raw.jsonl",)}),
        Status(altered={"arrivals/raw.jsonl.dvc": ("arrivals/raw.jsonl",)}),
    ):
        assert keys_found(status) == [[], ["s03"], []]
    small_data.add_pair("s99")
    small_data.remove_pair("s01")
    assert keys_found() == [["s99"], ["s03"], ["s01"]]


def test_without_a_ledger_all_is_new_unless_dvc_has_one(small_data) -> None:
    LEDGER.unlink()
    assert keys_found() == [[f"s{number:02d}" for number in range(12)], [], []]
    tracked_by(LEDGER).touch()
    assert keys_found() is None


# Which stages ended


def test_stages_that_ended_are_those_of_the_lock_file(tmp_path: Path) -> None:
    path = tmp_path / "dvc.lock"
    assert _ended_stages(path) == []
    path.write_text(RAN)
    assert _ended_stages(path) == ["ingest", "split-by_hand"]


# Whether samples are to be recorded


def seen_as(status: Status, *, found: int | None = 0) -> Look:
    """A look that found a status of DVC, and new samples; None: the ledger is not here."""
    seen = Seen(source="raw", ledger=str(LEDGER), new=found or 0)
    changes = None if found is None else Changes(new=(), changed=(), missing=())
    return Look(seen=seen, changes=changes, status=status, standing=NOWHERE, client=None)


@pytest.mark.parametrize(
    "found",
    [
        seen_as(NOTHING, found=1),
        seen_as(NOTHING, found=None),
        seen_as(Status(inputs={"train": ("params.yaml: train",), "ingest": ("raw",)})),
        seen_as(Status(altered={f"{LEDGER}.dvc": (str(LEDGER),)})),
    ],
    ids=["a new sample", "no ledger here", "a source that DVC finds changed", "a ledger that DVC has not heard of"],
)
def test_samples_are_recorded_where_source_or_ledger_are_others_than_dvc_knows(found: Look) -> None:
    assert found.must_add


@pytest.mark.parametrize(
    "status",
    [NOTHING, Status(inputs={"train": ("params.yaml: train",)}), Status(absent={f"{LEDGER}.dvc": (str(LEDGER),)})],
    ids=["nothing", "a changed recipe", "a ledger that a pull brings"],
)
def test_what_has_nothing_to_do_with_samples_records_none(status: Status) -> None:
    assert not seen_as(status).must_add
