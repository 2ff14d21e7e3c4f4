"""The road's data half with a source in an S3-compatible store; DVC follows it there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.workspace import make_workspace
from pipeline.catalog import read_catalog
from unet_core.errors import DataError, StorageError

pytestmark = pytest.mark.slow


def system_of(s3_server):
    import s3fs

    return s3fs.S3FileSystem(key=s3_server.key, secret=s3_server.secret, endpoint_url=s3_server.endpoint)


@pytest.fixture
def bucket(tree, s3_server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket with twelve pairs, and an environment in which it can be reached."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    tree.add_pairs([f"s {number:02d}" for number in range(12)])
    system = system_of(s3_server)
    name = f"b{abs(hash(str(tree.root))):x}"
    system.makedirs(name)
    system.put(str(tree.source), f"{name}/data", recursive=True)
    tree.write_recipe(ingest={"source": f"s3://{name}/data"})
    return f"{name}/data"


def test_shards_from_a_bucket_equal_shards_from_a_folder(tree, bucket: str, s3_server) -> None:
    tree.record()
    tree.run("ingest", "validate", "split", "shard")
    from_bucket = {path.name: path.read_bytes() for path in Path("data/shards").rglob("*.tar")}
    assert len(from_bucket) >= 3
    catalog = read_catalog(Path("data/catalog.parquet"))
    tree.write_recipe()
    tree.run("ingest", "validate", "split", "shard")
    assert read_catalog(Path("data/catalog.parquet")) == catalog
    assert {path.name: path.read_bytes() for path in Path("data/shards").rglob("*.tar")} == from_bucket


def test_a_file_that_has_changed_in_the_bucket_is_found_by_whoever_reads_it(tree, bucket: str, s3_server) -> None:
    tree.record()
    tree.run("ingest", "validate", "split")
    system_of(s3_server).pipe_file(f"{bucket}/images/s 03.png", b"another")
    for stage in ("shard", "ingest"):
        with pytest.raises(DataError, match=r"^a recorded sample has changed: s 03: images/s 03.png or its mask"):
            tree.run(stage)


def test_a_folder_that_is_not_in_the_bucket_is_named(tree, bucket: str) -> None:
    tree.write_recipe(ingest={"source": f"s3://{bucket}/none"})
    with pytest.raises(DataError, match=rf"^no such folder: s3://{bucket}/none. Correct ingest.source"):
        tree.record()


def test_a_store_that_cannot_be_reached_is_named_without_its_secret(
    tree, bucket: str, s3_server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline import storage

    storage._file_system.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError) as caught:
        tree.record()
    text = str(caught.value)
    assert text.startswith(f"a place can't be reached: s3://{bucket}: ")
    assert "127.0.0.1:9" in text
    assert s3_server.secret not in text
    storage._file_system.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


def run(folder: Path, *words: str) -> str:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_init_and_repro_work_with_a_bucket(tree, bucket: str, s3_server, tmp_path: Path) -> None:
    folder = make_workspace(tmp_path / "tree", "shapes", {})
    text = run(folder, "unet", "init", "--source", f"s3://{bucket}", "--force")
    assert "12 images, images/{key}.*" in text
    assert (folder / "arrivals" / "data.jsonl").is_file()
    run(folder, "dvc", "repro", "shard")
    assert "Running stage" not in run(folder, "dvc", "repro", "shard")
    system_of(s3_server).pipe_file(f"{bucket}/images/new.txt", b"a new file")
    status = json.loads(run(folder, "dvc", "status", "--json"))
    assert "ingest" in status
    assert "validate" not in status


def test_adding_one_percent_sends_only_what_is_new(s3_server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    system = system_of(s3_server)
    system.makedirs("remote")
    folder = make_workspace(tmp_path / "tree", "shapes", {"shard.target_mb": 4.0})
    run(folder, "dvc", "remote", "add", "--default", "store", "s3://remote/dvc")
    run(folder, "dvc", "remote", "modify", "store", "endpointurl", s3_server.endpoint)

    def shard(count: int) -> tuple[dict[str, int], dict[str, bytes]]:
        """Record `count` pictures, shard and push them; the store's objects with their sizes, and the tars."""
        run(folder, "unet", "shapes", "data/raw/shapes", "--count", str(count))
        run(folder, "unet", "add")
        run(folder, "dvc", "repro", "shard")
        run(folder, "dvc", "push", "shard")
        system.invalidate_cache()
        tars = {path.name: path.read_bytes() for path in (folder / "data" / "shards" / "train").glob("*.tar")}
        return {name: about["size"] for name, about in system.find("remote", detail=True).items()}, tars

    before, old_tars = shard(200)
    after, new_tars = shard(202)
    sent = sum(size for name, size in after.items() if name not in before)
    assert {name: new_tars[name] for name in old_tars} == old_tars
    assert set(before) <= set(after)
    assert 0 < sent <= 0.03 * sum(before.values())
