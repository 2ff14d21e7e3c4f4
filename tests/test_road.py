"""The whole road with real DVC, Ray and MLflow, on tiny data: what a user does and what must come out."""

import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.workspace import (
    TRAIN,
    change_recipe,
    commit,
    kill_driver,
    make_workspace,
    run,
    start,
    training_workers,
    wait_for_step,
)
from pipeline import tracking
from pipeline.search_runs import SEARCH_TAG
from unet_core.errors import TrainingError

pytestmark = pytest.mark.slow

#: Small and quick; batch norm, so that running statistics are part of what must be equal.
TINY = {
    "model.width": 4,
    "model.depth": 2,
    "train.epochs": 3,
    "train.lanes": 4,
    "train.samples_per_lane": 1,
    "train.validate_every_epochs": 1,
    "train.checkpoint_every_steps": 5,
    "promote.min_score": 0.01,
    "promote.min_groups": 3,
    "shard.target_mb": 2.0,
}


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working tree in which everything ran once."""
    folder = make_workspace(tmp_path_factory.mktemp("road") / "tree", "shapes", TINY)
    run(folder, "unet", "shapes", "data/raw/shapes", "--count", "60")
    run(folder, "unet", "add")
    run(folder, "dvc", "repro")
    run(folder, "unet", "promote")
    return folder


def weights(folder: Path) -> bytes:
    return (folder / "models" / "final" / "model.safetensors").read_bytes()


def copy_of(road: Path, folder: Path, changes: Mapping[str, object] | None = None) -> Path:
    """A copy that has everything but the model, with its own MLflow store."""
    shutil.copytree(road, folder, ignore=shutil.ignore_patterns("mlflow.db*", "mlruns", "models", ".unet"))
    if changes:
        change_recipe(folder, None, changes)
    return folder


def test_everything_that_a_run_promises_is_there(road: Path) -> None:
    for name in ("models/final/model.json", "reports/report.html", "reports/promotion.html", "reports/verdict.json"):
        assert (road / name).stat().st_size > 0
    scores = json.loads((road / "metrics" / "evaluate.json").read_text())
    assert 0 < scores["dice"] <= 1
    assert json.loads((road / "reports" / "verdict.json").read_text())["decision"] == "promoted"


def test_summary_tells_scores_version_verdict_report_and_next_step(road: Path) -> None:
    text = run(road, "unet", "summary")
    for words in ("test Dice", "unet 1", "promoted: the first champion", "reports/promotion.html", "unet predict"):
        assert words in text


def test_second_repro_runs_nothing(road: Path) -> None:
    text = run(road, "dvc", "repro")
    assert "Running stage" not in text
    assert "up to date" in text


def test_promoting_twice_moves_nothing(road: Path) -> None:
    assert "champion already" in run(road, "unet", "promote")


def stale_stages(folder: Path) -> set[str]:
    status = json.loads(run(folder, "dvc", "status", "--json"))
    return {name for name in status if not name.endswith(".dvc")}


def test_a_knob_reruns_only_what_depends_on_it(road: Path, tmp_path: Path) -> None:
    tree = shutil.copytree(road, tmp_path / "tree")
    change_recipe(tree, None, {"train.learning_rate": 0.5})
    stale = stale_stages(tree)
    assert "train" in stale
    assert not stale & {"ingest", "validate", "split", "shard"}
    change_recipe(tree, None, {"train.learning_rate": 0.01, "evaluate.bootstrap_draws": 10})
    assert not stale_stages(tree) & {"ingest", "validate", "split", "shard", "train", "register"}


def test_a_module_reruns_only_what_imports_it(road: Path, tmp_path: Path) -> None:
    tree = shutil.copytree(road, tmp_path / "tree")
    with (tree / "pipeline" / "report_page.py").open("a") as stream:
        stream.write("# changed\n")
    assert stale_stages(tree) == {"report"}


def test_dvc_shows_metrics_plots_and_graph(road: Path) -> None:
    assert "val_loss" in run(road, "dvc", "metrics", "show")
    assert "evaluate" in run(road, "dvc", "dag")
    run(road, "dvc", "plots", "show", "--out", "dvc_plots")
    assert "curves" in (road / "dvc_plots" / "index.html").read_text()


def test_neither_a_killed_worker_nor_an_edited_recipe_changes_a_training(road: Path, tmp_path: Path) -> None:
    tree = copy_of(road, tmp_path / "tree")
    process = start(tree, *TRAIN)
    wait_for_step(tree, process, 12)
    killed = training_workers(process)
    assert killed
    # For the next training: this one goes on as it began, and DVC is not to record the two together.
    recipe = (tree / "params.yaml").read_text()
    change_recipe(tree, None, {"train.learning_rate": 0.5})
    killed[0].send_signal(signal.SIGKILL)
    assert process.wait(timeout=300) == TrainingError.exit_code
    told = (tree / "start.log").read_text().splitlines()[-1]
    assert "changed while the training ran: train.learning_rate was 0.01, is 0.5. Put it back and run again, " in told
    (tree / "params.yaml").write_text(recipe)
    run(tree, *TRAIN)
    assert weights(tree) == weights(road)


def test_a_mistake_that_one_worker_finds_ends_the_training_soon(road: Path, tmp_path: Path) -> None:
    """The others wait for it in a sum; nobody tries again, since the shard stays damaged."""
    tree = copy_of(road, tmp_path / "tree", {"shard.codec": "png"})
    run(tree, "dvc", "repro", "shard")
    process = start(tree, *TRAIN, env={"UNET_WORKERS": "2"})
    wait_for_step(tree, process, 2)
    shard = min((tree / "data" / "shards" / "train").glob("*.tar"))
    # In place: the workers have the file open.
    with shard.open("r+b") as stream:
        for place in range(600, shard.stat().st_size, 997):
            stream.seek(place)
            stream.write(b"\xa5")
    begun = time.monotonic()
    assert process.wait(timeout=120) == TrainingError.exit_code
    assert time.monotonic() - begun < 40
    text = (tree / "start.log").read_text()
    assert "Traceback" not in text
    assert shard.name in text.splitlines()[-1]


def logged_steps(folder: Path) -> list[int]:
    """Steps of the one run in the tree's own MLflow store, as they arrived."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert [found.info.status for found in runs] == ["FINISHED"]
    return [metric.step for metric in client.get_metric_history(runs[0].info.run_id, "train_loss")]


def test_a_killed_driver_goes_on_from_the_newest_whole_checkpoint_and_logs_no_step_twice(
    road: Path, tmp_path: Path
) -> None:
    tree = copy_of(road, tmp_path / "tree")
    process = start(tree, *TRAIN)
    wait_for_step(tree, process, 18)
    kill_driver(process)
    older, newest = sorted(path.parent for path in tree.glob(".unet/training/*/checkpoints/*/train_state.json"))[-2:]
    damaged = newest / "last.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8] + bytes(8))
    told = run(tree, *TRAIN)
    assert f"checkpoint is damaged: {damaged}." in told
    assert f"An older one is taken: {older}." in told
    assert weights(tree) == weights(road)
    steps = logged_steps(tree)
    assert steps == sorted(set(steps))
    assert len(steps) == sum(1 for _ in (tree / "plots" / "curves.csv").open()) - 1


def test_one_worker_with_shards_from_s3_gives_the_weights_of_two_with_local_ones(
    road: Path, tmp_path: Path, s3_server
) -> None:
    import s3fs

    system = s3fs.S3FileSystem(key=s3_server.key, secret=s3_server.secret, endpoint_url=s3_server.endpoint)
    system.makedirs("shards")
    system.put(str(road / "data" / "shards") + "/", "shards/copy/", recursive=True)
    tree = copy_of(road, tmp_path / "tree")
    places = {"UNET_SHARDS": "s3://shards/copy", "UNET_CACHE": str(tmp_path / "cache"), "UNET_CACHE_GB": "0.5"}
    workers = "1" if (os.cpu_count() or 1) > 1 else "2"
    told = run(tree, *TRAIN, env={**s3_server.environment(), **places, "UNET_WORKERS": workers})
    assert f"train: {workers} worker" in told
    assert weights(tree) == weights(road)
    fetched = {path.name for path in (tmp_path / "cache").rglob("*.tar")}
    index = json.loads((road / "data" / "shards" / "index.json").read_text())["shards"]
    assert fetched == {Path(shard["name"]).name for shard in index if shard["split"] != "test"}


@pytest.mark.chaos
def test_a_training_goes_on_from_a_url_where_nothing_else_is_known_of_it(road: Path, tmp_path: Path, s3_server) -> None:
    import s3fs

    system = s3fs.S3FileSystem(key=s3_server.key, secret=s3_server.secret, endpoint_url=s3_server.endpoint)
    system.makedirs("checkpoints")
    places = {**s3_server.environment(), "UNET_CHECKPOINTS": "s3://checkpoints/of/all"}
    tree = copy_of(road, tmp_path / "tree")
    process = start(tree, *TRAIN, env=places)
    wait_for_step(tree, process, 18)
    kill_driver(process)
    assert not list(tree.rglob("*.safetensors"))
    # Another machine, which has the working tree and nothing of what the first one did.
    shutil.rmtree(tree)
    tree = copy_of(road, tmp_path / "tree")
    for name in ("metrics/train.json", "plots/curves.csv", "plots/validation.csv"):
        (tree / name).unlink()
    run(tree, *TRAIN, env=places)
    for name in ("models/final/model.safetensors", "metrics/train.json", "plots/curves.csv", "plots/validation.csv"):
        assert (tree / name).read_bytes() == (road / name).read_bytes(), name
    logged = logged_steps(tree)
    assert sorted(logged) == list(range(len(logged)))
    system.invalidate_cache()
    assert system.find("checkpoints") == []


def test_a_wrong_copy_of_the_shards_is_refused_before_a_cluster_starts(road: Path, tmp_path: Path) -> None:
    tree = copy_of(road, tmp_path / "tree")
    copy = shutil.copytree(road / "data" / "shards", tmp_path / "copy")
    for sidecar in copy.glob("*/*.jsonl"):
        sidecar.write_bytes(sidecar.read_bytes() + b"\n")
    told = run(tree, *TRAIN, env={"UNET_SHARDS": f"file://{copy}"}, check=False)
    assert "UNET_SHARDS holds other shards: " in told.splitlines()[-1]
    for sidecar in copy.glob("*/*.jsonl"):
        sidecar.unlink()
    told = run(tree, *TRAIN, env={"UNET_SHARDS": f"file://{copy}"}, check=False)
    assert "a file is missing: " in told.splitlines()[-1]
    assert "Copy data/shards there again, or correct UNET_SHARDS." in told.splitlines()[-1]


def test_predict_writes_masks_of_the_original_size(road: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, size in {"small": (20, 9), "odd": (213, 187)}.items():
        Image.fromarray(np.zeros(size, dtype=np.uint8)).save(pictures / f"{name}.png")
    run(road, "unet", "predict", str(pictures), "--out", str(tmp_path / "out"))
    for name, size in {"small": (9, 20), "odd": (187, 213)}.items():
        assert Image.open(tmp_path / "out" / "masks" / "ring" / f"{name}.png").size == size
        assert Image.open(tmp_path / "out" / "overlays" / f"{name}.png").size == size


def test_plain_mlflow_predicts_from_the_command_line(road: Path, tmp_path: Path) -> None:
    image = np.asarray(Image.open(road / "data/raw/shapes/images/00000.png"))[None, ..., None]
    (tmp_path / "in.json").write_text(json.dumps({"inputs": image.tolist()}))
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{road / 'mlflow.db'}"}
    run(
        road,
        *("mlflow", "models", "predict", "--model-uri", "models:/unet@champion", "--env-manager", "local"),
        *("--input-path", str(tmp_path / "in.json"), "--output-path", str(tmp_path / "out.json")),
        env=env,
    )
    masks = np.array(json.loads((tmp_path / "out.json").read_text())["predictions"])
    assert masks.shape == (1, 192, 192, 6)
    assert set(np.unique(masks)) <= {0, 1}


def test_no_file_of_the_registered_model_is_a_pickle(road: Path) -> None:
    files = [path for path in (road / "mlruns").rglob("*") if path.is_file()]
    assert any(path.name == "model.safetensors" for path in files)
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]


def test_an_experiment_changes_a_knob_and_leaves_the_champion_alone(road: Path, tmp_path: Path) -> None:
    tree = shutil.copytree(road, tmp_path / "tree")
    text = run(tree, "dvc", "exp", "run", "-S", "train.learning_rate=0.002", "-S", "train.epochs=1", "train")
    assert "Running stage 'train'" in text
    assert "Running stage 'shard'" not in text
    assert "0.002" in run(tree, "dvc", "exp", "show", "--csv")
    assert "train.learning_rate" in run(tree, "dvc", "params", "diff")
    assert "champion already" in run(road, "unet", "promote")


def test_an_experiment_in_a_copy_logs_to_the_users_own_store(road: Path, tmp_path: Path) -> None:
    tree = shutil.copytree(road, tmp_path / "tree")
    # DVC copies the tree without the data: a source for queued experiments is an absolute path.
    change_recipe(tree, None, {"ingest.source": str(road / "data/raw/shapes"), "train.epochs": 1})
    # As a user does: the copy holds what git tracks, and the ledger comes by its .dvc file.
    commit(tree, "data recorded")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tree / 'mlflow.db'}")
    before = len(client.search_runs(["1"]))
    run(tree, "dvc", "exp", "run", "--temp", "train")
    assert len(client.search_runs(["1"])) == before + 1


@pytest.mark.chaos
def test_a_searchs_winner_is_registered_and_the_search_names_its_version(road: Path, tmp_path: Path) -> None:
    tree = copy_of(road, tmp_path / "tree")
    with (tree / "params.yaml").open("a") as stream:
        stream.write("search:\n  space: {train.weight_decay: [0.02]}\n  trials: 2\n  grace_epochs: 3\n  seed: 0\n")
    said = run(tree, "unet", "search", "--register")
    assert "registered: unet version 1. Next: unet promote" in said
    client = tracking.connect(f"sqlite:///{tree / 'mlflow.db'}")
    (search,) = client.search_runs([client.experiment_id()], f"tags.`{SEARCH_TAG}` != ''")
    assert search.data.tags["winner.version"] == "models:/unet/1"
    assert tracking.version_by_number(client, "unet", "2") is None
