"""Incremental data in practice: real deliveries, trainings, verdicts and a rollback, on a sixth of DSB2018."""

import tarfile
from pathlib import Path

import pytest

from benchmarks.story import tell


@pytest.mark.slow
@pytest.mark.chaos
def test_broken_labels_are_not_promoted_and_an_override_is_taken_back(datasets: Path, tmp_path: Path) -> None:
    with tarfile.open(datasets / "dsb2018.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    first, second, broken, forced, back = tell(tmp_path / "story", tmp_path / "dsb2018", quick=True)
    assert (first["exit_code"], first["champion"]) == (10, "1")
    assert first["sentence"].startswith("promoted: the first champion, Dice 0.")
    # More data help, or don't yet: the gate says which.
    assert second["exit_code"] in (10, 11)
    assert broken["exit_code"] == 11
    assert broken["sentence"].startswith("not promoted: Dice 0.")
    assert broken["champion"] == second["champion"]
    assert (forced["champion"], forced["moves"][-1]) == ("3", "forced")
    assert back["champion"] == broken["champion"]
    assert back["moves"] == [*broken["moves"], "forced", "rolled back"]
