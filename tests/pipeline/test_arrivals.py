import os
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.arrivals import add, draw_source
from pipeline.ledger import read_ledger
from unet_core.errors import DataError, StorageError
from unet_core.hashing import hash_file
from unet_core.synthetic import SHAPE_NAMES

LEDGER, TRACKED = Path("arrivals/raw.jsonl"), Path("arrivals/raw.jsonl.dvc")


def tracked_md5() -> str:
    return yaml.safe_load(TRACKED.read_text(encoding="utf-8"))["outs"][0]["md5"]


def md5_of(path: Path) -> str:
    import hashlib

    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.mark.slow
def test_every_batch_is_recorded_and_tracked(dvc_tree, capsys: pytest.CaptureFixture[str]) -> None:
    dvc_tree.add_pairs(["a", "b", "c"])
    dvc_tree.write_recipe()
    add()
    assert capsys.readouterr().out == "batch 1 recorded in arrivals/raw.jsonl: 3 new, 0 changed, 0 removed\n"
    assert tracked_md5() == md5_of(LEDGER)
    add()
    assert capsys.readouterr().out == "nothing new in raw\n"
    dvc_tree.add_pair("d")
    dvc_tree.add_pair("a", draw="corrected")
    dvc_tree.remove_pair("b")
    with pytest.raises(DataError) as caught:
        add()
    assert str(caught.value) == (
        "recorded samples are missing from raw: b. "
        "Restore them, or record their removal with `unet add --allow-removal`."
    )
    assert len(read_ledger(LEDGER)) == 3
    add(allow_removal=True)
    assert capsys.readouterr().out == "batch 2 recorded in arrivals/raw.jsonl: 1 new, 1 changed, 1 removed\n"
    assert tracked_md5() == md5_of(LEDGER)


@pytest.mark.slow
def test_a_ledger_that_is_only_in_git_is_not_begun_anew(dvc_tree) -> None:
    dvc_tree.add_pair("a")
    dvc_tree.write_recipe()
    add()
    LEDGER.unlink()
    with pytest.raises(DataError) as caught:
        add()
    assert str(caught.value) == (
        "the ledger is recorded in git but not here: arrivals/raw.jsonl. Run `dvc pull` before you add to it."
    )
    assert not LEDGER.exists()


@pytest.mark.slow
def test_a_batch_that_dvc_could_not_track_is_tracked_by_the_next_attempt(dvc_tree) -> None:
    dvc_tree.add_pair("a")
    dvc_tree.write_recipe()
    add()
    dvc_tree.add_pair("b")
    shutil.move(".dvc", "away")
    with pytest.raises(
        StorageError, match=r"^DVC can't track the ledger arrivals/raw.jsonl: you are not inside of a DVC "
    ):
        add()
    shutil.move("away", ".dvc")
    add()
    assert tracked_md5() == md5_of(LEDGER)


@pytest.mark.slow
def test_the_webhooks_address_does_not_reach_dvc(dvc_tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Python runs this file at the start of each process that finds it, of DVC too.
    startup = tmp_path / "startup" / "sitecustomize.py"
    startup.parent.mkdir()
    startup.write_text(f"import os\nopen({str(tmp_path / 'seen')!r}, 'a').write(str(dict(os.environ)))\n")
    monkeypatch.setenv("PYTHONPATH", str(startup.parent), prepend=os.pathsep)
    monkeypatch.setenv("UNET_WEBHOOK", "https://hooks.example.org/secret")
    dvc_tree.add_pair("a")
    dvc_tree.write_recipe()
    add()
    seen = (tmp_path / "seen").read_text()
    assert "DVC_SITE_CACHE_DIR" in seen
    assert "hooks.example.org" not in seen


def test_before_a_missing_sample_is_allowed_nothing_is_recorded(small_data) -> None:
    before = LEDGER.read_bytes()
    for key in ("s01", "s02"):
        small_data.remove_pair(key)
    with pytest.raises(DataError, match=r"^recorded samples are missing from raw: s01 and 1 more. "):
        add()
    assert LEDGER.read_bytes() == before


def test_shapes_are_a_source_with_a_folder_for_each_class(tree, capsys: pytest.CaptureFixture[str]) -> None:
    draw_source(Path("raw"), count=3, seed=0)
    assert capsys.readouterr().out == "3 pictures of shapes in raw\n"
    assert sorted(path.stem for path in Path("raw/images").iterdir()) == ["00000", "00001", "00002"]
    for name in SHAPE_NAMES:
        assert len(list((Path("raw/masks") / name).iterdir())) == 3
    assert not list(Path("raw").rglob("*.partial"))


def test_shapes_that_are_there_stay_and_missing_ones_come_back_the_same(tree) -> None:
    draw_source(Path("raw"), count=3, seed=0)
    hashes = {path: hash_file(path) for path in Path("raw").rglob("*.png")}
    mark = Path("raw/images/00001.png").stat().st_mtime_ns
    Path("raw/masks/ring/00002.png").unlink()
    draw_source(Path("raw"), count=3, seed=0)
    assert {path: hash_file(path) for path in Path("raw").rglob("*.png")} == hashes
    assert Path("raw/images/00001.png").stat().st_mtime_ns == mark


def test_another_seed_draws_other_shapes(tree) -> None:
    for seed in (0, 1):
        draw_source(Path(f"raw{seed}"), count=1, seed=seed)
    assert hash_file(Path("raw0/images/00000.png")) != hash_file(Path("raw1/images/00000.png"))
