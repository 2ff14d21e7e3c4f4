"""A training worker where nothing of the driver's tree lies: what it needs comes from the driver and from S3.

That the hosts of a real cluster come by it too is in tests/cluster/test_no_shared_files.py, which needs root.
"""

import hashlib
import shutil
from pathlib import Path

import pytest
import yaml

from benchmarks.object_store import ObjectStore
from pipeline.placement import read_placement
from unet_core.checkpoint import weights_hash, write_model
from unet_core.index import read_index

pytestmark = pytest.mark.slow

SHARDS = Path("data/shards")
BEGIN = Path("weights/begin.safetensors")


@pytest.fixture
def pushed(sharded, s3_server: ObjectStore, dvc, write_model_dir, empty_store: Path, monkeypatch) -> Path:
    """A working tree whose shards DVC has sent to a bucket, and weights to begin with that only this tree has."""
    root = sharded.root
    given = {"UNET_CACHE": str(root / "cache"), "UNET_SHARDS": "dvc", "UNET_WORKERS": "1"}
    for name, value in {**s3_server.environment(), **given}.items():
        monkeypatch.setenv(name, value)
    # Makes the bucket.
    s3_server.put(sharded.source / "masks", f"s3://elsewhere/{root.name}/masks")
    dvc("init", "--no-scm")
    dvc("remote", "add", "--default", "store", f"s3://elsewhere/{root.name}/dvc")
    dvc("add", str(SHARDS))
    dvc("push")
    shutil.copy(empty_store, root / "mlflow.db")
    write_model_dir(root / "begin")
    BEGIN.parent.mkdir()
    shutil.copy(root / "begin" / "model.safetensors", BEGIN)
    sharded.write_recipe(train={"epochs": 2, "lanes": 2, "samples_per_lane": 1})
    recipe = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    recipe["model"] = {"width": 2, "depth": 1, "norm": "none", "input_statistics": "train"}
    recipe["train"]["initial_weights"] = {"path": str(BEGIN), "sha256": hashlib.sha256(BEGIN.read_bytes()).hexdigest()}
    Path("params.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return root


def train_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give a worker what the train stage gives it, and take the tree away; the hash of the weights it ends with."""
    from pipeline import cluster
    from pipeline.checkpoints import Checkpoints
    from pipeline.shard_places import find_shards
    from pipeline.stages.train import training_inputs
    from pipeline.worker import read_recipe, read_weights, train_worker

    placement, index = read_placement(), read_index(SHARDS)
    recipe = read_recipe(index)
    checkpoints = Checkpoints(root=str(folder / "checkpoints"), made_by=training_inputs(SHARDS))
    options = {
        "root": str(placement.root / "seen by the driver alone"),
        "index": index,
        "places": find_shards(SHARDS, index, placement),
        "checkpoints": checkpoints,
        "recipe": recipe,
        "weights": read_weights(recipe[0], recipe[1]),
        "processor": "",
        "loader_threads": 1,
        "use_gpu": False,
    }
    SHARDS.rename("away")
    # On this machine Ray starts workers where the driver is.
    monkeypatch.chdir(folder)
    group = cluster.Group(least=1, most=1, threads=recipe[1].threads_per_worker, use_gpu=False)
    with cluster.cluster(placement, 1) as wait_for_cluster:
        wait_for_cluster()
        cluster.train_group(train_worker, options, group, work_dir=folder / "work", on_report=lambda _: None)
    found = checkpoints.find_newest()
    assert found is not None
    write_model(folder / "model", recipe[0], found.state.best_weights)
    return weights_hash(folder / "model")


def test_a_worker_without_the_drivers_tree_trains_the_weights_of_one_with_it(
    pushed: Path, sharded, unet, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    done = unet(*sharded.words("train"))
    assert done.returncode == 0, done.stderr
    wanted, index = weights_hash(pushed / "models" / "final"), read_index(SHARDS).shards
    assert not (pushed / "cache").exists()
    assert train_elsewhere(tmp_path_factory.mktemp("elsewhere"), monkeypatch) == wanted
    fetched = {path.name for path in (pushed / "cache").rglob("*.tar")}
    assert fetched == {Path(shard.name).name for shard in index if shard.split != "test"}
