"""`unet status`: each part by itself."""

from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.status import age


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (59, "59 s"), (61, "1 min"), (3 * 3600, "3 h"), (50 * 3600, "2 d")]
)
def test_ages_are_told_as_people_do(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_where_nothing_is_each_part_says_so_and_nothing_is_made(
    tree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.write_recipe()
    before = sorted(path.name for path in tree.root.iterdir())
    with pytest.raises(SystemExit) as ended:
        main(["status", "--address", "127.0.0.1:9"])
    assert ended.value.code == 0
    away = "Ray's Jobs API can't be reached: http://127.0.0.1:9. "
    starts = ("cluster   " + away, "jobs      " + away, "runs      none yet: ", "champion  none yet")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)
    assert sorted(path.name for path in tree.root.iterdir()) == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_runs_and_champion_come_from_the_registry(registered, client, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline import tracking

    version = tracking.version_by_alias(client, "unet", tracking.CHALLENGER)
    tracking.set_alias(client, version, tracking.CHAMPION)
    with pytest.raises(SystemExit):
        main(["status", "--address", "127.0.0.1:9"])
    lines = capsys.readouterr().out.splitlines()
    assert f"champion  unet version 1 is champion, weights {version.weights_sha256[:12]}" in lines[-2]
    assert lines[-1].strip().startswith("unet version 1 is challenger")
    assert any(line.startswith("runs      ") and "since" in line for line in lines)
    assert Path("mlflow.db").exists()
