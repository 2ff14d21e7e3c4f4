"""The whole command with real DVC, git, MLflow and trainings, stopped between any two steps.

No file tells how far a call came, so doing by hand what it had done is the same as stopping it there.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from PIL import Image

from benchmarks.retraining import CALL, Place, make_place
from benchmarks.workspace import ROOT, change_recipe, commit, run, start, wait_for_step, weights_of
from pipeline import tracking
from pipeline.claimant import Claimant
from pipeline.history import Entry
from pipeline.question import DECISION_TAG, SENTENCE_TAG, question_tags
from pipeline.retrain_reasons import Reason
from pipeline.retrain_standing import UNDER_WAY_TAG, note_reasons
from unet_core.errors import TrainingError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A first call has trained, recorded and promoted."""
    place = make_place(tmp_path_factory.mktemp("retrain"))
    code, said = place.call()
    assert code == 10, said
    assert said.startswith("retraining: 60 new samples in data/raw/shapes; nothing was trained here yet; there is no")
    return place


@pytest.fixture(scope="module")
def reproduced(first: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Twelve more samples were added, and the pipeline has run; nothing else."""
    place = first.copy_to(tmp_path_factory.mktemp("reproduced") / "place")
    place.add_shapes(72)
    place.run("unet", "add")
    place.run("dvc", "repro")
    return place


def test_a_first_call_does_everything_and_tells(first: Place) -> None:
    told = first.summary()
    assert told["outcome"] == "promoted"
    assert told["sentence"].startswith("promoted: the first champion, ")
    assert told["samples"] == {"new": 60, "changed": 0, "removed": 0}
    assert told["challenger"]["version"] == "1"
    assert 0 < told["challenger"]["score"] <= 1
    assert (told["champion"], told["against"]) == ("1", {"version": None, "score": None})
    assert set(told["seconds"]) >= {"look", "add", "reproduce", "push", "record", "push branch", "gate"}
    assert (first.tree / "reports" / "retrain.md").read_text().startswith("# Retraining: promoted\n")
    assert "Running stage 'train'" in (first.tree / ".unet" / "retrain.log").read_text()
    first.check_all_done()


def test_an_idle_call_changes_nothing(first: Place) -> None:
    before = first.git("rev-parse", "HEAD")
    code, said = first.call()
    assert code == 0
    assert said == (
        "nothing to do: no new samples in data/raw/shapes, no changed recipe or code; of unet, version 1 is champion, "
        "made 0 days ago\n"
    )
    assert first.git("rev-parse", "HEAD") == before
    assert first.summary()["outcome"] == "nothing to do"


def test_a_dry_run_explains_and_changes_nothing(first: Place, tmp_path: Path) -> None:
    place = first.copy_to(tmp_path / "place")
    place.add_shapes(63)
    before = state_of(place.tree)
    code, said = place.call("unet", "retrain", "--branch", "retrain", "--dry-run", "--exit-code")
    assert code == 0
    assert said == (
        "would retrain: 3 new samples in data/raw/shapes\n"
        "steps: unet add, dvc repro, dvc push, a commit on branch retrain, unet promote\n"
    )
    assert state_of(place.tree) == before


def state_of(tree: Path) -> dict[str, bytes]:
    """All files but those that tools keep for themselves, and what the test itself writes."""
    apart = (".git/", ".dvc/tmp/", "start.log")
    paths = {path.relative_to(tree).as_posix(): path for path in tree.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if not name.startswith(apart)}


def test_a_dry_run_makes_no_registry(first: Place, tmp_path: Path) -> None:
    place = first.copy_to(tmp_path / "place")
    for path in place.tree.glob("mlflow.db*"):
        path.unlink()
    code, said = place.call("unet", "retrain", "--dry-run")
    assert code == 0
    assert "would retrain: the gate has not judged this model on today's test images; there is no champion" in said
    assert not list(place.tree.glob("mlflow.db*"))


def test_shards_are_in_dvcs_remote_before_workers_read_them_there(first: Place, tmp_path: Path) -> None:
    place = first.copy_to(tmp_path / "place")
    place.add_shapes(66)
    code, said = place.call(env={"UNET_SHARDS": "dvc"})
    assert code == 10, said
    assert "Running stage 'shard'" in (place.tree / ".unet" / "retrain-shard.log").read_text()
    assert "Running stage 'train'" in (place.tree / ".unet" / "retrain.log").read_text()
    place.check_all_done()


@pytest.mark.chaos
def test_stopped_after_add(first: Place, tmp_path: Path) -> None:
    place = first.copy_to(tmp_path / "place")
    place.add_shapes(72)
    place.run("unet", "add")
    code, said = place.call()
    assert code == 10, said
    assert said.startswith("retraining: recorded samples that no stage has seen, in arrivals/shapes.jsonl\n")
    told = place.summary()
    assert told["samples"] == {"new": 12, "changed": 0, "removed": 0}
    assert (told["challenger"]["version"], told["against"]["version"], told["champion"]) == ("2", "1", "2")
    place.check_all_done()


@pytest.mark.chaos
def test_stopped_between_the_ledger_and_dvc(first: Place, reproduced: Place, tmp_path: Path) -> None:
    """The ledger has grown, DVC has not heard of it: it must neither be lost nor grow again."""
    place = first.copy_to(tmp_path / "place")
    place.add_shapes(72)
    shutil.copy(reproduced.tree / "arrivals" / "shapes.jsonl", place.tree / "arrivals" / "shapes.jsonl")
    code, said = place.call()
    assert code == 10, said
    assert (place.tree / "arrivals" / "shapes.jsonl").read_text().count("\n") == 72
    assert weights_of(place.tree) == weights_of(reproduced.tree)
    place.check_all_done()


def test_stopped_after_reproducing(reproduced: Place, tmp_path: Path) -> None:
    place = reproduced.copy_to(tmp_path / "place")
    # The stopped call's own.
    note_reasons(place.tree / ".unet", [Reason(kind="data", text="12 new samples in data/raw/shapes")])
    code, said = place.call()
    assert code == 10, said
    assert "retraining: results that git does not have yet; the gate has not judged this model" in said
    assert "Running stage" not in said
    causes = [reason["text"] for reason in place.summary()["reasons"]]
    assert causes[:2] == ["12 new samples in data/raw/shapes", "results that git does not have yet"]
    assert place.git("log", "-1", "--format=%b", "retrain").splitlines()[:2] == causes[:2]
    assert not (place.tree / ".unet" / "retrain-reasons.json").exists()
    assert place.summary()["samples"] == {"new": 12, "changed": 0, "removed": 0}
    place.check_all_done()


@pytest.mark.chaos
def test_stopped_after_pushing(reproduced: Place, tmp_path: Path) -> None:
    place = reproduced.copy_to(tmp_path / "place")
    place.run("dvc", "push")
    code, said = place.call()
    assert code == 10, said
    assert "results: commit " in said
    place.check_all_done()


def test_stopped_after_the_commit(reproduced: Place, tmp_path: Path) -> None:
    place = reproduced.copy_to(tmp_path / "place")
    place.run("dvc", "push")
    # As it was before, the branch is there; a commit on it that origin lacks.
    commit_results(place)
    code, said = place.call()
    assert code == 10, said
    assert said.startswith("retraining: branch retrain is not at origin yet; the gate has not judged this model")
    place.check_all_done()


def commit_results(place: Place) -> None:
    place.git("add", "--all", "--", "dvc.lock", "arrivals", "metrics", "models/receipt.json")
    place.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "Retrain")


def test_stopped_after_the_branch_was_pushed_and_the_gate_refuses(reproduced: Place, tmp_path: Path) -> None:
    place = reproduced.copy_to(tmp_path / "place")
    change_recipe(place.tree, None, {"promote.max_weights_mb": 1e-6})
    place.git("add", "params.yaml")
    commit_results(place)
    place.git("push", "--quiet", "origin", "retrain")
    code, said = place.call()
    assert code == 11, said
    told = place.summary()
    assert told["outcome"] == "not promoted"
    assert "weights " in told["sentence"]
    assert (told["challenger"]["version"], told["champion"]) == ("2", "1")
    place.check_all_done()
    # Asked once: until something changes there is nothing to do; and other rules are a change.
    change_recipe(place.tree, None, {"promote.max_weights_mb": None})
    commit(place.tree, "other rules")
    code, said = place.call()
    assert code == 10, said
    assert said.startswith("retraining: changed recipe: a section that only commands read; branch retrain is not at")


def record_results(place: Place) -> tuple[tracking.Client, tracking.Version]:
    """All but the gate's part is done; the registry and the version that it will be asked about."""
    place.run("dvc", "push")
    commit_results(place)
    place.git("push", "--quiet", "origin", "retrain")
    client = place.client()
    challenger = tracking.version_by_alias(client, "unet", tracking.CHALLENGER)
    assert challenger is not None
    return client, challenger


def test_stopped_between_verdict_and_move(reproduced: Place, tmp_path: Path) -> None:
    """The tags say promoted, and the history knows nothing of it: it is asked again, and then moved."""
    place = reproduced.copy_to(tmp_path / "place")
    client, challenger = record_results(place)
    with contextlib.chdir(place.tree):
        answered = {**question_tags(Path("data/shards")), DECISION_TAG: "promoted", SENTENCE_TAG: "promoted: better"}
    tracking.set_version_tags(client, challenger, answered)
    code, said = place.call()
    assert code == 10, said
    assert place.champion().number == challenger.number
    place.check_all_done()


def test_what_people_committed_without_a_push_is_pushed_before_the_gate(reproduced: Place, tmp_path: Path) -> None:
    place = reproduced.copy_to(tmp_path / "place")
    commit_results(place)
    place.git("push", "--quiet", "origin", "retrain")
    assert "in sync" not in place.run("dvc", "status", "--cloud")
    code, said = place.call()
    assert code == 10, said
    assert "in sync" in place.run("dvc", "status", "--cloud")
    place.check_all_done()


def test_stopped_while_the_champion_moved(reproduced: Place, tmp_path: Path) -> None:
    """The alias moved and nobody wrote that it was done; the process that did it is dead."""
    place = reproduced.copy_to(tmp_path / "place")
    client, challenger = record_results(place)
    note_what_it_is_about(client, challenger)
    claim_half_a_move(client, challenger)
    code, said = place.call()
    assert code == 10, said
    assert said.startswith(
        "retraining: an earlier call was stopped (12 new samples)\nfinishing what another process left: "
    )
    assert place.champion().number == challenger.number
    place.check_all_done()


def note_what_it_is_about(client: tracking.Client, version: tracking.Version) -> None:
    """What a call leaves in the registry until people are told."""
    memory = {"reasons": ["12 new samples"], "samples": {"new": 12, "changed": 0, "removed": 0}, "was_champion": False}
    tracking.set_version_tags(client, version, {UNDER_WAY_TAG: json.dumps(memory)})


def claim_half_a_move(client: tracking.Client, version: tracking.Version) -> None:
    from dataclasses import asdict

    from pipeline.append_log import open_log
    from pipeline.claimant import this_process

    mine = this_process()
    entry = Entry(
        action="promoted",
        version=version.number,
        reason="promoted: better",
        number=2,
        before="1",
        by="ada@host",
        time="2026-01-02T03:04:05+00:00",
        identity="id",
        claimant=Claimant(machine=mine.machine, pid=4194400, started=1.0),
    )
    assert open_log(client, "unet promotions").claim("000002", json.dumps(asdict(entry)))
    tracking.set_alias(client, version, tracking.CHAMPION)


def test_stopped_after_the_promotion_people_are_told(reproduced: Place, tmp_path: Path) -> None:
    place = reproduced.copy_to(tmp_path / "place")
    code, said = place.call()
    assert code == 10, said
    note_what_it_is_about(place.client(), place.champion())
    (place.tree / "reports" / "retrain.json").unlink()
    code, said = place.call()
    assert code == 10, said
    assert said.startswith("retraining: an earlier call was stopped (12 new samples)\n")
    assert place.summary()["samples"]["new"] == 12
    assert place.summary()["outcome"] == "promoted"
    place.check_all_done()
    # Who goes back to the champion before is not overruled.
    place.run("unet", "rollback", "--reason", "it misses thin rings")
    code, said = place.call()
    assert code == 0, said
    assert place.champion().number == "1"


@pytest.mark.chaos
def test_killed_in_training_it_goes_on_when_the_pipeline_has_ended(first: Place, tmp_path: Path) -> None:
    place = first.copy_to(tmp_path / "place")
    change_recipe(place.tree, None, {"train.epochs": 12})
    commit(place.tree, "longer")
    process = start(place.tree, *CALL)
    wait_for_step(place.tree, process, 12)
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    code, said = place.call()
    assert code == 12, said
    assert said.startswith(f"another retraining is at work in {place.tree}: process {process.pid} on ")
    for child in below:
        if child.is_running():
            child.kill()
    psutil.wait_procs(below, timeout=60)
    code, said = place.call()
    assert code == 10, said
    assert "retraining: changed recipe: train" in said
    place.check_all_done()


def test_a_remote_that_never_answers_ends_with_the_time_limit(first: Place, tmp_path: Path) -> None:
    place = first.copy_to(tmp_path / "place")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place.run("dvc", "remote", "add", "silent", f"http://127.0.0.1:{silent.getsockname()[1]}")
        place.run("dvc", "config", "core.remote", "silent")
        commit(place.tree, "another remote")
        process = start(place.tree, *CALL, "--force", "--time-limit", "0.01")
        silent.settimeout(120)
        # DVC asks what the remote has.
        kept, _ = silent.accept()
        below = psutil.Process(process.pid).children(recursive=True)
        code = process.wait(timeout=240)
        kept.close()
    assert code == TrainingError.exit_code
    assert below, "nothing was at work"
    assert psutil.wait_procs(below, timeout=20)[1] == []
    told = place.summary()
    assert told["outcome"] == "failed"
    assert told["sentence"] == (
        "stopped, since its time is over: --time-limit 0.01 hours. What is done stays, and the next call goes on from "
        "there; see what took so long, or give it more."
    )
    assert "push" in told["seconds"]
    place.git("revert", "--no-edit", "HEAD")
    code, said = place.call()
    assert code == 11, said
    assert said.startswith("retraining: branch retrain is not at origin yet; an earlier call was stopped (")
    place.check_all_done()


@pytest.mark.chaos
def test_terminated_it_ends_the_training_with_a_checkpoint(first: Place, tmp_path: Path) -> None:
    place = first.copy_to(tmp_path / "place")
    change_recipe(place.tree, None, {"train.epochs": 40, "train.seed": 1})
    commit(place.tree, "longer")
    process = start(place.tree, *CALL)
    wait_for_step(place.tree, process, 12)
    below = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    assert process.wait(timeout=90) == 130
    assert psutil.wait_procs(below, timeout=20)[1] == []
    with (place.tree / ".unet" / "retrain.lock").open() as lock:
        assert lock.read() == ""


def test_a_fresh_clone_takes_what_was_pushed(first: Place, tmp_path: Path) -> None:
    place = first.copy_to(tmp_path / "place")
    shutil.rmtree(place.tree / ".dvc" / "cache")
    for name in ("data/catalog.parquet", "data/shards", "data/splits.csv", "models/final", "plots", "reports"):
        path = place.tree / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (place.tree / "arrivals" / "shapes.jsonl").unlink()
    code, said = place.call()
    assert code == 0, said
    assert said.startswith("nothing to do: ")
    assert "pull" in place.summary()["seconds"]
    assert (place.tree / "models" / "final" / "model.safetensors").exists()


def test_githubs_next_runner_does_not_train_again_what_nobody_has_merged(first: Place, tmp_path: Path) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "retrain.yaml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["retrain"]["steps"]
    (take,) = (step["run"] for step in steps if step.get("name") == "take what was not merged")
    place = first.copy_to(tmp_path / "place")
    place.git("push", "--quiet", "origin", "--delete", "retrain")
    run(place.folder, "git", "clone", "--quiet", "origin.git", "before")
    before = place.folder / "before"
    run(before, "bash", "-e", "-c", take)
    assert run(before, "git", "rev-parse", "HEAD").strip() == place.git("rev-parse", "main"), "there is nothing to take"
    place.git("push", "--quiet", "origin", "retrain:refs/heads/retrain-runs/1")
    run(place.folder, "git", "clone", "--quiet", "origin.git", "runner")
    runner = place.folder / "runner"
    shutil.copytree(place.tree / "data" / "raw", runner / "data" / "raw")
    # Newer, and with code that nobody has reviewed.
    run(before, "git", "switch", "--quiet", "--create", "work", "origin/main")
    (before / "pipeline" / "cli.py").write_text("raise SystemExit('nobody has read this')\n", encoding="utf-8")
    commit(before, "work")
    run(before, "git", "push", "--quiet", "origin", "HEAD:refs/heads/retrain-runs/2")
    run(runner, "git", "fetch", "--quiet")
    run(runner, "bash", "-e", "-c", take)
    registry = {"MLFLOW_TRACKING_URI": f"sqlite:///{place.tree / 'mlflow.db'}"}
    said = run(runner, "unet", "retrain", "--branch", "retrain-runs/3", env=registry)
    assert "nothing to do: " in said
    assert run(runner, "git", "rev-parse", "HEAD").strip() == place.git("rev-parse", "retrain")


def test_without_a_branch_and_a_remote_a_patch_is_left(first: Place, tmp_path: Path) -> None:
    place = first.copy_to(tmp_path / "place")
    place.run("dvc", "remote", "remove", "--quiet", "store")
    change_recipe(place.tree, None, {"evaluate.seed": 1})
    code, said = place.call("unet", "retrain", "--exit-code")
    assert code == 11, said
    assert "results: patch .unet/retrain.patch\n" in said
    # Scores by another draw; the model is the same.
    assert said.endswith("not promoted: the model is the same as before, and champion already\n")
    assert place.git("log", "-1", "--format=%s") == first.git("log", "-1", "--format=%s")
    run(place.tree, "git", "checkout", "--quiet", "--", "dvc.lock", "metrics", "models")
    run(place.tree, "git", "apply", ".unet/retrain.patch")
    code, said = place.call("unet", "retrain", "--exit-code")
    assert code == 0, said


def test_age_and_force_are_reasons_of_their_own(first: Place, tmp_path: Path) -> None:
    place = first.copy_to(tmp_path / "place")
    code, said = place.call(*CALL, "--max-age", "0.00001", "--force", "to see that it works")
    assert code == 11, said
    assert "allowed; asked for: to see that it works\n" in said
    assert "Running stage" not in said
    assert [reason["kind"] for reason in place.summary()["reasons"]] == ["age", "force"]
    place.check_all_done()


def test_samples_that_are_gone_end_it_with_the_code_for_data_and_the_webhook_hears(
    first: Place, tmp_path: Path
) -> None:
    place = first.copy_to(tmp_path / "place")
    (gone,) = place.tree.glob("data/raw/shapes/images/00007.png")
    for path in place.tree.glob("data/raw/shapes/**/00007.png"):
        path.unlink()
    assert not gone.exists()
    code, said = place.call(env={"UNET_WEBHOOK": "http://127.0.0.1:9/secret"})
    assert code == 4
    assert "unet retrain: recorded samples are missing from data/raw/shapes: 00007. Restore them, or " in said
    assert "UNET_WEBHOOK was not told: Connection refused" in said
    assert "secret" not in said
    assert place.summary()["outcome"] == "failed"


def test_a_lock_file_that_a_kill_cut_off_is_mended(reproduced: Place, tmp_path: Path) -> None:
    place = reproduced.copy_to(tmp_path / "place")
    lock = place.tree / "dvc.lock"
    lock.write_text(lock.read_text()[:-300] + "  :")
    code, said = place.call()
    assert code == 10, said
    assert "dvc.lock was damaged, as a kill may leave it: git's is back" in said
    assert weights_of(place.tree) == weights_of(reproduced.tree)
    place.check_all_done()


def test_a_branch_that_has_no_room_since_the_last_fetch_is_refused_though_there_is_nothing_to_do(
    first: Place, tmp_path: Path
) -> None:
    place = first.copy_to(tmp_path / "place")
    subprocess.run(["git", "push", "--quiet", "../origin.git", "HEAD:refs/heads/night/x"], cwd=place.tree, check=True)
    code, said = place.call("unet", "retrain", "--branch", "night", "--exit-code")
    assert code == 7, said
    assert "no room for branch night: there is refs/remotes/origin/night/x. " in said


def test_a_typo_anywhere_in_the_recipe_is_told_before_results_are_gone(first: Place, tmp_path: Path) -> None:
    place = first.copy_to(tmp_path / "place")
    recipe = place.tree / "params.yaml"
    recipe.write_text(recipe.read_text().replace("  learning_rate:", "  learning_rat:"))
    commit(place.tree, "faster")
    code, said = place.call(*CALL, "--dry-run")
    assert code == 0, said
    assert "\nand would refuse before the first of them: unknown key: params.yaml: train: learning_rat. " in said
    code, said = place.call()
    assert code == 3, said
    assert place.summary()["sentence"].startswith("unknown key: params.yaml: train: learning_rat. ")
    assert place.git("status", "--porcelain") == ""
    assert (place.tree / "models" / "final").is_dir()


def test_pins_that_are_not_installed_are_refused_before_the_training(first: Place, tmp_path: Path) -> None:
    place = first.copy_to(tmp_path / "place")
    pins = place.tree / "constraints.txt"
    pins.write_text(pins.read_text() + "numpy==1.0\n")
    commit(place.tree, "newer")
    code, said = place.call(*CALL, "--dry-run")
    assert code == 0, said
    assert "\nand would refuse before the first of them: constraints.txt pins numpy 1.0, installed is " in said
    code, said = place.call()
    assert code == 5, said
    assert "constraints.txt pins numpy 1.0, installed is " in said
    assert "Run `make install` (on a cluster, build the image anew), or correct the pin." in said


def test_the_webhook_hears_that_upstream_can_not_be_had_though_there_is_nothing_to_do(
    first: Place, tmp_path: Path
) -> None:
    place = first.copy_to(tmp_path / "place")
    hook = {"UNET_WEBHOOK": "http://127.0.0.1:9/secret"}
    code, said = place.call(env=hook)
    assert code == 0, said
    assert "UNET_WEBHOOK" not in said
    (place.folder / "origin.git").rename(place.folder / "away.git")
    code, said = place.call(env=hook)
    assert code == 0, said
    said_of_upstream, _, after = said.partition(")\n")
    assert "origin/main can't be fetched: what lies here is used (fatal: " in said_of_upstream
    assert after.startswith("UNET_WEBHOOK was not told: Connection refused\n")
    assert "nothing to do: " in said


def test_new_code_from_upstream_is_what_runs(first: Place, tmp_path: Path) -> None:
    place = first.copy_to(tmp_path / "place")
    # Somebody merges the branch, and changes the pipeline.
    people = tmp_path / "place" / "people"
    run(place.folder, "git", "clone", "--quiet", "origin.git", "people")
    run(people, "git", "-c", "user.name=a", "-c", "user.email=a@b", "merge", "--quiet", "origin/retrain")
    report = people / "pipeline" / "stages" / "report.py"
    report.write_text(report.read_text() + "\n# A change that decides nothing.\n")
    summary = people / "pipeline" / "retrain_reasons.py"
    summary.write_text(summary.read_text().replace('"changed code: ', '"new code came: '))
    commit(people, "work")
    run(people, "git", "push", "--quiet", "origin", "HEAD:main")
    code, said = place.call(env={"PYTHONPATH": str(place.tree)})
    assert code == 11, said
    assert "retraining: new code came: pipeline/stages/report.py\n" in said
    place.check_all_done()


def test_inputs_that_drift_are_a_reason_that_people_hear_of_and_that_trains_nothing(
    first: Place, tmp_path: Path
) -> None:
    place = first.copy_to(tmp_path / "place")
    dark = place.folder / "dark"
    dark.mkdir()
    for path in sorted((place.tree / "data" / "raw" / "shapes" / "images").iterdir())[:24]:
        with Image.open(path) as picture:
            picture.point(lambda level: level // 4).save(dark / path.name)
    place.run("unet", "predict", "../dark", "--out", "../predictions", "--log", "statistics")
    with (place.tree / "params.yaml").open("a") as stream:
        stream.write("drift: {max_distance: 0.4}\n")
    commit(place.tree, "look at drift")
    code, said = place.call()
    assert code == 11, said
    reason = "recent inputs differ from the training data: brightness "
    assert f"; {reason}" in said.splitlines()[0]
    told = place.summary()
    assert [reason["kind"] for reason in told["reasons"]] == ["recipe", "record", "drift"]
    assert f"the model is the same as before, and champion already; {reason}" in told["text"]
    # It stays a reason until something changes.
    code, said = place.call()
    assert (code, said.startswith(f"retraining: {reason}")) == (11, True), said


def test_crons_line_works_under_its_bare_environment(first: Place) -> None:
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(first.folder), "SHELL": "/bin/sh", "PYTHONPATH": str(ROOT)}
    words = ["/bin/sh", "-c", cron_command(first)]
    done = subprocess.run(words, cwd="/", env=bare, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[:15]) == (0, "nothing to do: "), done.stderr


#: Runs the daemon $1 with root's crontab $2 where the machine's own crontabs are out of sight.
CRON = """
for place in /etc/cron.d /var/spool /run; do mount -t tmpfs none "$place"; done
install -d -m 1730 /var/spool/cron/crontabs
install -m 600 "$2" /var/spool/cron/crontabs/root
exec "$1" -f
"""


@pytest.mark.chaos
def test_a_cron_daemon_calls_it_each_minute_and_only_one_call_trains(first: Place, tmp_path: Path) -> None:
    daemon = shutil.which("cron", path=f"{os.environ['PATH']}:/usr/sbin")
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if daemon is None or subprocess.run([*apart, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no cron daemon (Debian: apt install cron), or no rights to hide the machine's crontabs from it")
    place, said = first.copy_to(tmp_path / "place"), tmp_path / "said"
    place.add_shapes(72)
    settings = f"SHELL=/bin/sh\nHOME={tmp_path}\nPYTHONPATH={ROOT}\n"
    tab = tmp_path / "crontab"
    tab.write_text(f"{settings}* * * * * ({cron_command(place)}) >>{said} 2>&1\n")
    with subprocess.Popen([*apart, "sh", "-e", "-c", CRON, "sh", daemon, str(tab)]) as cron:
        try:
            deadline = time.monotonic() + 400
            while time.monotonic() < deadline and not (said.exists() and "nothing to do: " in said.read_text()):
                time.sleep(1)
        finally:
            cron.kill()
    told = said.read_text()
    assert told.count("retraining: 12 new samples in data/raw/shapes") == 1, told
    assert told.count("\npromoted: ") == 1, told
    place.check_all_done()


def cron_command(place: Place) -> str:
    """What stands in infra/schedules/crontab behind the time."""
    lines = (ROOT / "infra" / "schedules" / "crontab").read_text().splitlines()
    command = lines[-1].split(maxsplit=5)[5].replace("cd /srv/unet", f"cd {place.tree}")
    return command.replace(".venv/bin/unet", str(Path(sys.executable).with_name("unet")))
