"""Against a real SQLite registry."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline import tracking
from pipeline.history import Move, move_champion
from pipeline.question import DECISION_TAG, SENTENCE_TAG, question_tags
from pipeline.retrain_reasons import Reason
from pipeline.retrain_standing import (
    Answer,
    Memory,
    Standing,
    conclude,
    forget,
    forget_reasons,
    note_reasons,
    nowhere,
    read_standing,
    remember,
)
from unet_core.errors import RecipeError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]
RECEIPT, SHARDS = Path("models/receipt.json"), Path("data/shards")


def stand(client) -> Standing:
    return read_standing(client, receipt=RECEIPT, shards=SHARDS)


def version_of(client) -> tracking.Version:
    version = stand(client).version
    assert version is not None
    return version


def test_a_registered_model_waits_for_the_gate(registered, client) -> None:
    standing = stand(client)
    assert standing.version is not None
    assert (standing.version.number, standing.champion, standing.answer, standing.memory) == ("1", None, None, None)
    assert not standing.is_champion
    assert not standing.is_half_moved


def test_without_a_receipt_or_with_half_of_one_nothing_is_registered(registered, client) -> None:
    RECEIPT.write_text('{"model": "unet", "model_sh', encoding="utf-8")
    assert stand(client).version is None
    RECEIPT.unlink()
    assert stand(client) == nowhere()


def test_an_answer_counts_for_its_question_only(registered, client) -> None:
    told = {DECISION_TAG: "not promoted", SENTENCE_TAG: "not promoted: worse"}
    tracking.set_version_tags(client, version_of(client), {**told, **question_tags(SHARDS)})
    assert stand(client).answer == Answer(decision="not promoted", sentence="not promoted: worse")
    registered.write_recipe(promote={"margin": 0.02})
    assert stand(client).answer is None
    registered.write_recipe()
    assert stand(client).answer is not None
    shutil.rmtree(SHARDS)
    assert stand(client).answer is None


def test_who_was_champion_once_is_not_asked_about_again(registered, client, write_model_dir) -> None:
    first = version_of(client)
    move_champion(client, "unet", lambda _: Move(action="promoted", version=first.number, reason="promoted: better"))
    standing = stand(client)
    assert standing.is_champion
    assert standing.answer == Answer(decision="promoted", sentence="promoted: better")
    assert standing.champion_age_days is not None
    assert 0 <= standing.champion_age_days < 1
    write_model_dir(Path("models/final"), inverted=True)
    registered.run("register")
    assert stand(client).answer is None
    second = version_of(client)
    move_champion(client, "unet", lambda _: Move(action="forced", version=second.number, reason="dark cells"))
    move_champion(client, "unet", lambda _: Move(action="rolled back", version=first.number, reason="no"))
    standing = stand(client)
    assert not standing.is_champion
    assert standing.answer == Answer(decision="promoted", sentence="dark cells")


def test_the_registry_remembers_what_a_retraining_is_about_until_people_are_told(registered, client) -> None:
    memory = Memory(reasons=("2 new samples in raw", "changed code: a.py"), samples={"new": 2}, was_champion=False)
    remember(client, version_of(client), memory)
    assert stand(client).memory == memory
    forget(client, version_of(client))
    assert stand(client).memory is None


def test_reasons_are_kept_from_call_to_call_until_people_are_told(tmp_path: Path) -> None:
    folder = tmp_path / ".unet"
    first = Reason(kind="data", text="2 new samples in raw")
    second = Reason(kind="record", text="results that git does not have yet")
    assert note_reasons(folder, [first]) == (first,)
    # The second is seen again where it still holds.
    assert note_reasons(folder, [second, first]) == (first, second)
    assert note_reasons(folder, []) == (first,)
    for damaged in ("[", '["2 new samples"]', "{}", '[{"kind": "data"}]'):
        (folder / "retrain-reasons.json").write_text(damaged)
        assert note_reasons(folder, [second]) == (second,)
    forget_reasons(folder)
    forget_reasons(folder)
    assert note_reasons(folder, []) == ()


def test_a_memory_of_another_version_of_the_project_is_one_all_the_same(registered, client) -> None:
    tracking.set_version_tags(client, version_of(client), {"retrain.under_way": json.dumps({"what": "else"})})
    memory = stand(client).memory
    assert memory is not None
    assert memory.reasons == ("a call of another version of the project",)


def test_a_recipe_without_a_models_name_is_told(tree) -> None:
    Path("params.yaml").write_text("register: {}\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        nowhere()
    assert str(caught.value) == "missing key: params.yaml: register.model. Add it; recipes/ shows examples."


def test_who_was_champion_and_is_no_more_is_not_said_to_be_promoted() -> None:
    def version(number: str) -> tracking.Version:
        return tracking.Version(
            name="unet", number=number, run_id=None, model_sha256=number, weights_sha256=number, tags={}
        )

    standing = Standing(
        model="unet",
        version=version("2"),
        champion=version("1"),
        champion_age_days=1.0,
        answer=Answer(decision="promoted", sentence="promoted: Dice 0.9 vs 0.8"),
        memory=None,
        is_half_moved=False,
    )
    memory = Memory(reasons=("12 new samples",), samples={}, was_champion=False)
    assert conclude(standing, memory) == (
        "not promoted",
        "it was champion before, and people made another version champion since",
    )
