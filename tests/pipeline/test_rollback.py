"""Against real SQLite stores."""

import contextlib
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from pipeline import tracking
from pipeline.history import MAX_REASON, Move, move_champion
from pipeline.registration import ensure_version
from pipeline.rollback import rollback, show_history
from unet_core.checkpoint import model_hash
from unet_core.errors import RegistryError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture
def three(client, tree, write_model_dir):
    """Versions 1 to 3, promoted one after the other; each has files of its own."""
    tree.write_recipe()
    for number in ("1", "2", "3"):
        write_model_dir(Path("models/final"), seed=int(number))
        made, _ = ensure_version(client, "unet", Path("models/final"))
        assert made.number == number
        move = Move(action="promoted", version=number, reason=f"promoted: number {number}")
        move_champion(client, "unet", lambda _, move=move: move)
    return client


def champion(client) -> str | None:
    found = tracking.version_by_alias(client, "unet", tracking.CHAMPION)
    return found.number if found else None


def test_each_rollback_goes_one_further_back(three, capsys: pytest.CaptureFixture[str]) -> None:
    rollback(reason="masks of scanner B are empty")
    assert champion(three) == "2"
    assert capsys.readouterr().out == "unet version 2 is champion again, before it was version 3\n"
    rollback(reason="")
    assert champion(three) == "1"
    with pytest.raises(RegistryError) as caught:
        rollback(reason="")
    assert str(caught.value) == "no earlier champion of unet to go back to. Look with `unet history`."
    assert champion(three) == "1"


def test_a_deleted_version_is_left_out_and_named(three, capsys: pytest.CaptureFixture[str]) -> None:
    three.delete_model_version("unet", "2")
    rollback(reason="")
    assert champion(three) == "1"
    assert "left out: unet version 2 is not in the registry any more\n" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_version_that_nobody_can_load_is_left_out_and_named(
    three, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    known = tracking.version_by_number(three, "unet", "2")
    (stored,) = (
        path for path in Path("mlruns").rglob("model.safetensors") if model_hash(path.parent) == known.model_sha256
    )
    if damage == "gone":
        stored.unlink()
    else:
        stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    rollback(reason="")
    assert champion(three) == "1"
    told = (
        "a file of unet version 2 can't be fetched: " if damage == "gone" else "files of unet version 2 have changed "
    )
    assert f"left out: {told}" in capsys.readouterr().out


def test_after_the_champion_itself_was_deleted_the_one_before_comes_back(three) -> None:
    three.delete_model_version("unet", "3")
    assert champion(three) is None
    rollback(reason="version 3 was deleted")
    assert champion(three) == "2"


def test_times_without_a_champion_are_left_out_silently(three, capsys: pytest.CaptureFixture[str]) -> None:
    three.delete_registered_model_alias("unet", tracking.CHAMPION)
    move_champion(three, "unet", lambda _: Move(action="forced", version="1", reason="another one"))
    rollback(reason="")
    assert champion(three) == "3"
    assert capsys.readouterr().out == "unet version 3 is champion again, before it was version 1\n"


def test_a_champion_that_others_took_away_and_gave_back_is_not_its_own_predecessor(three) -> None:
    champion_3 = tracking.version_by_alias(three, "unet", tracking.CHAMPION)
    three.delete_registered_model_alias("unet", tracking.CHAMPION)
    show_history()
    tracking.set_alias(three, champion_3, tracking.CHAMPION)
    show_history()
    for earlier in ("2", "1"):
        rollback(reason="")
        assert champion(three) == earlier
    with pytest.raises(RegistryError, match=r"^no earlier champion of unet to go back to"):
        rollback(reason="")


def test_a_number_that_was_given_anew_to_another_model_is_left_out(
    client, tree, write_model_dir, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.write_recipe()
    for seed, number in enumerate(("1", "2", "1")):
        if number == "1":
            with contextlib.suppress(MlflowException):
                client.delete_registered_model("unet")
        write_model_dir(Path("models/final"), seed=seed)
        made, _ = ensure_version(client, "unet", Path("models/final"))
        assert made.number == number
        if seed < 2:
            move = Move(action="promoted", version=number, reason="better", model_sha256=made.model_sha256)
            move_champion(client, "unet", lambda _, move=move: move)
    with pytest.raises(RegistryError, match=r"^no earlier champion of unet to go back to"):
        rollback(reason="")
    told = "left out: unet version 1 is another model than the champion that had this number"
    assert told in capsys.readouterr().out


def test_without_a_champion_there_is_nothing_to_go_back_to(client, tree) -> None:
    tree.write_recipe()
    with pytest.raises(RegistryError, match=r"^no earlier champion of unet to go back to"):
        rollback(reason="")


def test_the_history_tells_who_moved_what_and_why(three, capsys: pytest.CaptureFixture[str]) -> None:
    rollback(reason="masks of scanner B are empty")
    capsys.readouterr()
    show_history()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["1", "2", "3", "4"]
    assert lines[1].endswith("promoted version 2, before version 1: promoted: number 2")
    assert lines[3].endswith("rolled back version 2, before version 3: masks of scanner B are empty")


def test_before_any_promotion_the_history_says_what_to_do(client, tree) -> None:
    tree.write_recipe()
    with pytest.raises(RegistryError) as caught:
        show_history()
    assert str(caught.value) == "no version of unet was ever promoted. Run `unet promote`."


@pytest.mark.parametrize("reason", ["x" * (MAX_REASON + 1), "two\nlines"])
def test_a_reason_that_does_not_fit_is_refused(three, reason: str) -> None:
    with pytest.raises(RegistryError, match=r"^not a reason for the history: .* Say it in a sentence\.$"):
        rollback(reason=reason)
    assert champion(three) == "3"


def test_the_longest_reason_of_any_script_fits(three) -> None:
    rollback(reason='\N{HIRAGANA LETTER A}"' * (MAX_REASON // 2))
    assert champion(three) == "2"
