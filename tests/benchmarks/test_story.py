"""The story of a growing data set, on a few dozen real images: a wrong delivery is refused, and the way back works."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.story import LEAST_TEST, choose, cut, invert, read_rows, tell

#: Learns fluorescent nuclei in seconds.
TINY = {
    "model.width": 8,
    "model.depth": 2,
    "augment.crop_px": 64,
    "train.epochs": 20,
    "train.lanes": 2,
    "train.samples_per_lane": 2,
    "train.learning_rate": 0.01,
    "train.warmup_steps": 5,
    "train.validate_every_epochs": 5,
    "promote.min_score": 0.5,
    "evaluate.bootstrap_draws": 200,
}


def rows_of(**counts: int) -> list[dict[str, str]]:
    return [{"id": f"{split}{number}", "split": split} for split, count in counts.items() for number in range(count)]


def test_deliveries_are_60_20_and_20_percent_of_what_is_trained_and_validated_on() -> None:
    rows = rows_of(train=50, val=10, test=30)
    deliveries = cut(rows)
    found = [[sum(row["split"] == split for row in part) for split in ("train", "val", "test")] for part in deliveries]
    assert found == [[30, 6, 30], [10, 2, 0], [10, 2, 0]]
    assert sorted(row["id"] for part in deliveries for row in part) == sorted(row["id"] for row in rows)


def test_a_smaller_story_still_has_enough_test_images_for_the_gate() -> None:
    rows = rows_of(train=533, val=68, test=63)
    assert choose(rows, None) == rows
    few = choose(rows, 60)
    assert sum(row["split"] == "test" for row in few) == LEAST_TEST
    assert len({row["id"] for row in few}) == 60


def test_an_inverted_mask_has_its_colours_exchanged(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 255], [255, 255]], dtype=np.uint8)).save(path)
    invert(path)
    assert np.asarray(Image.open(path)).tolist() == [[255, 0], [0, 0]]


@pytest.fixture
def fluorescent(datasets: Path, tmp_path: Path) -> Path:
    """Those images of DSB2018 that a small network learns soonest."""
    source = tmp_path / "dsb2018"
    with tarfile.open(datasets / "dsb2018.tar") as archive:
        archive.extract("dsb2018/index.csv", tmp_path, filter="data")
        rows = [row for row in read_rows(source / "index.csv") if (row["modality"], row["width"]) == KIND]
        for row in choose(rows, 70):
            for folder in ("images", "masks"):
                archive.extract(f"dsb2018/{folder}/{row['id']}.png", tmp_path, filter="data")
    lines = (source / "index.csv").read_text().splitlines()
    there = {path.stem for path in (source / "images").iterdir()}
    (source / "index.csv").write_text("\n".join([lines[0], *(x for x in lines if x.split(",")[0] in there)]) + "\n")
    return source


KIND = ("fluorescence", "256")


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_wrong_labels_are_refused_and_all_is_as_before_when_they_are_gone(
    fluorescent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = tell(tmp_path / "tree", fluorescent, read_rows(fluorescent / "index.csv"), TINY)
    shown = capsys.readouterr().out
    first, second, spoilt = told["deliveries"]
    assert (first["images"], second["images"], spoilt["images"]) == (50, 60, 70)
    assert (first["decision"], first["champion"]) == ("promoted", "1")
    assert first["challenger"] > 0.5
    assert second["decision"] in ("promoted", "not promoted")
    # Validation finds nothing wrong with such files; people may see how much more is labelled.
    assert spoilt["nucleus_fraction"] > second["nucleus_fraction"] + 0.05
    assert spoilt["decision"] == "not promoted"
    assert spoilt["challenger"] < spoilt["champion_before"]
    assert spoilt["champion"] == second["champion"]
    assert (told["forced"], told["champion"]) == ("3", second["champion"])
    assert told["end"].startswith("nothing to do: ")
    for command in ("unet add", "dvc repro", "unet promote", "unet retrain", "unet rollback --reason '"):
        assert f"$ {command}" in shown, shown
