"""Where shards lie: in DVC's real remotes, folders and an S3 server."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.placement import read_placement
from pipeline.shard_places import ShardPlaces, find_shards, open_shards, parse_listing
from unet_core.cache import CachedShards
from unet_core.errors import DataError, StorageError, TrainingError
from unet_core.index import read_index
from unet_core.reader import ShardReader

SHARDS = Path("data/shards")


@pytest.fixture
def tracked(sharded, dvc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards that DVC tracks, in its remote (a folder elsewhere) too; gives the remote."""
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("UNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UNET_SHARDS", "dvc")
    remote = tmp_path / "remote"
    dvc("init", "--no-scm")
    dvc("remote", "add", "--default", "store", str(remote))
    dvc("add", str(SHARDS))
    dvc("push")
    return remote


def find() -> ShardPlaces:
    return find_shards(SHARDS, read_index(SHARDS), read_placement())


def keys_and_pixels(source: Any, shards: Any) -> list[tuple[str, int, int]]:
    return [(sample.key, int(sample.image.sum()), int(sample.mask.sum())) for sample in ShardReader(source, shards)]


def test_workers_read_the_folder_where_nothing_else_is_said(sharded) -> None:
    places = find()
    assert (places.url, places.objects) == (None, None)
    with open_shards(places) as files:
        assert files == SHARDS.resolve()


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_host_without_the_shards_says_so(sharded, is_gone: bool) -> None:
    places = find()
    index = SHARDS / "index.json"
    # Of another state is as good as none.
    index.unlink() if is_gone else index.write_bytes(index.read_bytes() + b"\n")
    with (
        pytest.raises(
            TrainingError,
            match=r" does not have the shards that the training began with: /.*/data/shards\. Let it see the driver's "
            r"folder as it was, or set UNET_SHARDS to a URL, or to dvc after `dvc push`\.$",
        ),
        open_shards(places),
    ):
        pass


def test_a_copy_is_read_below_its_url_also_where_the_folder_is_seen(
    sharded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UNET_SHARDS", SHARDS.resolve().as_uri())
    shards = read_index(SHARDS).shards
    with open_shards(find()) as files:
        assert isinstance(files, CachedShards)
        assert keys_and_pixels(files, shards) == keys_and_pixels(SHARDS, shards)


@pytest.mark.slow
def test_a_host_that_sees_the_folder_fetches_nothing_from_dvcs_remote(tracked: Path) -> None:
    with open_shards(find()) as files:
        assert files == SHARDS.resolve()


@pytest.mark.slow
def test_a_host_without_the_folder_reads_the_same_from_dvcs_remote(tracked: Path) -> None:
    places, shards = find(), read_index(SHARDS).shards
    here = keys_and_pixels(SHARDS, shards)
    assert places.url == (tracked / "files" / "md5").as_uri()
    SHARDS.rename("elsewhere")
    with open_shards(places) as files:
        assert isinstance(files, CachedShards)
        assert keys_and_pixels(files, shards) == here


@pytest.mark.slow
def test_shards_that_were_not_pushed_are_found_missing_before_a_training(tracked: Path) -> None:
    (listing,) = tracked.rglob("*.dir")
    listing.unlink()
    with pytest.raises(DataError) as caught:
        find()
    assert str(caught.value) == (
        f"a file is missing: {listing.as_uri()}. Run `dvc push data/shards` where the shards are, or unset UNET_SHARDS."
    )


@pytest.mark.slow
def test_an_object_that_went_away_is_named(tracked: Path) -> None:
    places, shards = find(), read_index(SHARDS).shards
    assert places.objects is not None
    (tracked / "files" / "md5" / places.objects[shards[0].name]).unlink()
    SHARDS.rename("elsewhere")
    with open_shards(places) as files, pytest.raises(DataError, match=r"^a file is missing: file:///.* Run `dvc push"):
        files.open(shards[0])  # type: ignore[union-attr]


@pytest.mark.slow
def test_an_object_that_was_damaged_is_named_with_what_pushes_it_again(tracked: Path) -> None:
    places, shards = find(), read_index(SHARDS).shards
    assert places.objects is not None
    damaged = tracked / "files" / "md5" / places.objects[shards[0].name]
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    SHARDS.rename("elsewhere")
    with open_shards(places) as files, pytest.raises(DataError) as caught:
        files.open(shards[0])  # type: ignore[union-attr]
    told = str(caught.value)
    assert told.startswith(f"a remote shard is not the one of the index: {shards[0].name}: sha256 ")
    assert told.endswith(f" Remove {damaged.as_uri()}, and run `dvc push data/shards`.")


@pytest.mark.slow
def test_shards_that_dvc_has_not_on_record_are_refused(tracked: Path) -> None:
    index = SHARDS / "index.json"
    index.write_bytes(index.read_bytes() + b"\n")
    with pytest.raises(StorageError, match=r"^DVC has other shards on record than those in data/shards\. Run `dvc com"):
        find()
    Path("data/shards.dvc").unlink()
    with pytest.raises(StorageError, match=r"^DVC has no address for data/shards: .* Run `dvc repro`, then `dvc push"):
        find()


@pytest.mark.slow
def test_without_a_remote_there_is_nothing_to_read_from(tracked: Path, dvc) -> None:
    dvc("remote", "remove", "store")
    with pytest.raises(StorageError) as caught:
        find()
    assert str(caught.value) == (
        "DVC has no default remote, from which workers could read: `dvc remote add --default store s3://bucket/dvc`, "
        "then `dvc push`."
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        (
            "version_aware",
            "true",
            "DVC's remote s3 names no files by their hashes: version_aware is set. Workers can't read there: make another "
            "remote without it the default, or set UNET_SHARDS to a URL.",
        ),
        (
            "endpointurl",
            "http://me:password@127.0.0.1:9",
            "DVC's remote s3 has an endpoint of its own, which the environment lacks: http://***@127.0.0.1:9. Set "
            "AWS_ENDPOINT_URL to it, here and for Ray's processes on all hosts.",
        ),
    ],
)
def test_a_remote_that_takes_more_than_hashes_and_an_environment_is_refused(
    sharded, dvc, monkeypatch: pytest.MonkeyPatch, option: str, value: str, told: str
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UNET_SHARDS", "dvc")
    dvc("init", "--no-scm")
    dvc("remote", "add", "--default", "s3", "s3://bucket/dvc")
    dvc("remote", "modify", "s3", option, value)
    with pytest.raises(StorageError) as caught:
        find()
    assert str(caught.value) == told


@pytest.mark.parametrize("listed", [b"", b"{", b"[1]", b'[{"relpath": "index.json"}]', b"\xff"])
def test_a_damaged_list_is_refused(listed: bytes) -> None:
    with pytest.raises(DataError, match=r"^DVC's list of a folder is damaged: s3://\*\*\*@bucket/ab/cd\.dir: "):
        parse_listing(listed, where="s3://me:password@bucket/ab/cd.dir")
