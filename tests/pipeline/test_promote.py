import json
import sys
from pathlib import Path

import pytest

from pipeline import tracking
from pipeline.history import Move, history, move_champion
from pipeline.judging import DataPaths
from pipeline.promote import Request, promote
from pipeline.question import TEST_SET_TAG
from pipeline.receipt import read_receipt
from pipeline.registration import ensure_version
from pipeline.rollback import rollback
from unet_core.errors import RegistryError
from unet_core.samples import ClassMap, ImageConfig

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]
MODEL, RECEIPT, REPORT = Path("models/final"), Path("models/receipt.json"), Path("reports/report.html")
DATA = DataPaths(accepted=Path("data/accepted.parquet"), splits=Path("data/splits.csv"), shards=Path("data/shards"))
VERDICT, PAGE = Path("reports/verdict.json"), Path("reports/promotion.html")


def ask(**wish) -> None:
    promote(data=DATA, model=MODEL, receipt=RECEIPT, report=REPORT, ask=Request(**wish))


def champion(client) -> str | None:
    version = tracking.version_by_alias(client, "unet", tracking.CHAMPION)
    return version.model_sha256 if version else None


def challenger() -> str:
    return read_receipt(RECEIPT).model_sha256


def verdict() -> dict:
    return json.loads(VERDICT.read_text(encoding="utf-8"))


@pytest.fixture
def reported(registered):
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text("<html><body><!-- verdict --></body></html>", encoding="utf-8")
    return registered


def test_two_versions_that_others_registered_are_not_the_same_model(reported, client) -> None:
    source = tracking.version_by_number(client, "unet", "1")
    for _ in range(2):
        client.create_model_version("unet", source=client.get_model_version("unet", "1").source, run_id=source.run_id)
    tracking.set_alias(client, tracking.version_by_number(client, "unet", "2"), tracking.CHAMPION)
    with pytest.raises(RegistryError, match=r"^not a model of this project: unet version 3 has no tag "):
        ask(version="3", force=True, reason="it is another one")


def test_a_first_good_model_becomes_champion_and_says_so(reported, client, capsys: pytest.CaptureFixture[str]) -> None:
    ask()
    assert champion(client) == challenger()
    said = capsys.readouterr().out
    assert "unet version 1 promoted: the first champion, Dice 1.000, minimum 0.5;" in said
    assert "report with the verdict: reports/promotion.html" in said
    assert (verdict()["decision"], verdict()["version"], verdict()["against"]) == ("promoted", "1", None)
    assert "promoted: the first champion" in PAGE.read_text(encoding="utf-8")
    assert REPORT.read_text(encoding="utf-8") == "<html><body><!-- verdict --></body></html>"
    tags = tracking.find_version(client, "unet", challenger()).tags
    assert tags["gate.decision"] == "promoted"


def test_asking_again_changes_nothing(reported, client, capsys: pytest.CaptureFixture[str]) -> None:
    ask()
    before = champion(client)
    capsys.readouterr()
    ask()
    assert "nothing to do: unet version 1 is champion already, with the same model" in capsys.readouterr().out
    assert champion(client) == before


def test_a_first_bad_model_is_no_champion(reported, client, write_model_dir) -> None:
    write_model_dir(MODEL, inverted=True)
    reported.run("register")
    ask()
    assert champion(client) is None
    assert verdict()["decision"] == "not promoted"


def test_a_worse_challenger_leaves_the_champion(reported, client, write_model_dir) -> None:
    ask()
    good = champion(client)
    write_model_dir(MODEL, inverted=True)
    reported.run("register")
    ask()
    assert champion(client) == good != challenger()
    assert (verdict()["decision"], verdict()["against"]) == ("not promoted", "1")
    assert verdict()["difference"] < -0.5


def test_a_better_challenger_replaces_the_champion(reported, client, write_model_dir) -> None:
    good = challenger()
    write_model_dir(MODEL, inverted=True)
    reported.run("register")
    tracking.set_alias(client, tracking.find_version(client, "unet", challenger()), tracking.CHAMPION)
    write_model_dir(MODEL)
    reported.run("register")
    ask()
    assert champion(client) == good == challenger()
    assert (verdict()["decision"], verdict()["confidence"]) == ("promoted", 1.0)


def test_other_weights_with_equal_masks_are_not_promoted(reported, client, write_model_dir) -> None:
    ask()
    first = champion(client)
    # Other random weights in the level that the decoder leaves out.
    write_model_dir(MODEL, seed=1)
    reported.run("register")
    assert challenger() != first
    ask()
    assert champion(client) == first
    assert verdict()["difference"] == 0


def test_with_too_few_test_images_the_champion_stays(reported, client, write_model_dir) -> None:
    write_model_dir(MODEL, inverted=True)
    reported.run("register")
    bad = challenger()
    tracking.set_alias(client, tracking.find_version(client, "unet", bad), tracking.CHAMPION)
    write_model_dir(MODEL)
    reported.run("register")
    reported.write_recipe(promote={"min_groups": 100})
    ask()
    assert champion(client) == bad
    assert verdict()["sentence"].startswith("too few to tell: ")


@pytest.mark.parametrize("how", ["version deleted", "alias removed"])
def test_a_lost_champion_is_no_reason_to_take_any_model_for_the_first(
    reported, client, write_model_dir, how: str
) -> None:
    good = challenger()
    ask()
    write_model_dir(MODEL, seed=1)
    reported.run("register")
    ask(force=True, reason="the second champion")
    if how == "version deleted":
        client.delete_model_version("unet", "2")
    else:
        client.delete_registered_model_alias("unet", tracking.CHAMPION)
    write_model_dir(MODEL, seed=2)
    reported.run("register")
    with pytest.raises(RegistryError) as caught:
        ask()
    there = "1" if how == "version deleted" else "2"
    assert str(caught.value) == (
        f"unet has no champion now, but had one: version {there} is still there. Bring it back by `unet rollback`, or "
        "say --force --reason."
    )
    assert champion(client) is None
    rollback(reason="version 2 is gone")
    found = tracking.version_by_alias(client, "unet", tracking.CHAMPION)
    assert found is not None
    assert found.number == there
    assert (found.model_sha256 == good) == (there == "1")


def test_after_all_champions_were_deleted_there_is_a_first_one_again(reported, client, write_model_dir) -> None:
    ask()
    client.delete_model_version("unet", "1")
    write_model_dir(MODEL, seed=1)
    reported.run("register")
    ask()
    assert champion(client) == challenger()


NUCLEI = ClassMap(kind="multiclass", classes={"background": 0, "nucleus": 255}, background="background")
PLANE = ClassMap(kind="multilabel", classes={"background": 1, "cell": 1})


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"class_map": NUCLEI}, "knows multiclass ['background', 'nucleus'] and reads channels 1, bits 8; "),
        ({"class_map": PLANE}, "knows multilabel ['background', 'cell'] and reads channels 1, bits 8; "),
        (
            {"images": ImageConfig(channels=1, bits=16, value_range=[0, 4095])},
            "knows multiclass ['background', 'cell'] and reads channels 1, bits 16, value_range (0, 4095); ",
        ),
        (
            {"images": ImageConfig(channels=1, percentiles=[1, 99])},
            "knows multiclass ['background', 'cell'] and reads channels 1, bits 8, percentiles (1, 99); ",
        ),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_model_of_another_task_than_the_shards_is_not_judged(
    reported, client, write_model_dir, other: dict, told: str, is_first: bool
) -> None:
    if not is_first:
        ask()
    good = champion(client)
    write_model_dir(MODEL, seed=1, **other)
    reported.run("register")
    with pytest.raises(RegistryError) as caught:
        ask()
    assert str(caught.value) == (
        f"can't be judged on today's shards: unet version 2 {told}the shards have multiclass ['background', 'cell'] "
        "and channels 1, bits 8. Train on today's recipe, or give the new task its own register.model."
    )
    assert champion(client) == good


def test_a_champion_of_another_task_than_the_shards_is_not_judged_either(reported, client, write_model_dir) -> None:
    good = challenger()
    write_model_dir(MODEL, images=ImageConfig(channels=1, value_range=[0, 100]))
    reported.run("register")
    ask(force=True, reason="trained before the recipe changed")
    with pytest.raises(
        RegistryError, match=r"^can't be judged on today's shards: unet version 2 .* value_range \(0, 100"
    ):
        ask(version="1")
    assert champion(client) == challenger() != good


def test_weights_that_were_changed_in_the_registry_are_not_used(reported, client, write_model_dir) -> None:
    write_model_dir(Path("other"), inverted=True)
    (stored,) = reported.root.glob("mlruns/**/model.safetensors")
    stored.write_bytes((Path("other") / "model.safetensors").read_bytes())
    with pytest.raises(RegistryError, match=r"^files of unet version 1 have changed since it was registered: "):
        ask()
    assert champion(client) is None


def test_without_the_gate_a_named_version_is_promoted_and_the_history_says_why(
    reported, client, write_model_dir, capsys: pytest.CaptureFixture[str]
) -> None:
    ask()
    good = champion(client)
    write_model_dir(MODEL, inverted=True)
    reported.run("register")
    ask(version="2", force=True, reason="a customer needs dark cells")
    assert champion(client) == challenger() != good
    assert "unet version 2 is champion, without the gate: a customer needs dark cells\n" in capsys.readouterr().out
    entries = history(client, "unet")
    assert [(entry.action, entry.version, entry.before) for entry in entries] == [
        ("promoted", "1", None),
        ("forced", "2", "1"),
    ]
    assert entries[0].reason.startswith("promoted: the first champion, ")


def test_an_old_version_is_judged_too_but_its_verdict_is_not_put_into_the_page_of_another_model(
    reported, client, write_model_dir, capsys: pytest.CaptureFixture[str]
) -> None:
    good = challenger()
    write_model_dir(MODEL, inverted=True)
    reported.run("register")
    ask(force=True, reason="to be beaten")
    ask(version="1")
    assert champion(client) == good
    assert (verdict()["version"], verdict()["model_sha256"]) == ("1", good)
    assert capsys.readouterr().out.endswith("verdict: reports/verdict.json\n")
    assert not PAGE.exists()


def test_others_are_told_of_each_move_and_of_nothing_else(
    reported, client, write_model_dir, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import sys; open('told', 'a').write(sys.stdin.read() + chr(10))"
    monkeypatch.setenv("UNET_ON_PROMOTION", f'{sys.executable} -c "{script}"')
    ask()
    write_model_dir(MODEL, inverted=True)
    reported.run("register")
    ask()
    ask(force=True, reason="dark cells")
    rollback(reason="no, bright ones")
    told = [json.loads(line) for line in Path("told").read_text(encoding="utf-8").splitlines()]
    assert [(move["model"], move["action"], move["version"], move["before"]) for move in told] == [
        ("unet", "promoted", "1", None),
        ("unet", "forced", "2", "1"),
        ("unet", "rolled back", "1", "2"),
    ]


def test_a_version_that_nobody_can_load_is_not_forced(reported, client) -> None:
    (stored,) = reported.root.glob("mlruns/**/model.safetensors")
    stored.unlink()
    with pytest.raises(RegistryError, match=r"^a file of unet version 1 can't be fetched: "):
        ask(force=True, reason="it worked yesterday")
    assert champion(client) is None


def test_a_version_that_does_not_exist_is_named(reported, client) -> None:
    with pytest.raises(RegistryError) as caught:
        ask(version="7")
    assert str(caught.value) == ("no such version: unet version 7: it was deleted or never made. Look with `make ui`.")


@pytest.mark.parametrize("wish", [{"force": True}, {"force": True, "reason": " "}, {"reason": "because"}])
def test_force_and_reason_go_together(wish) -> None:
    with pytest.raises(RegistryError) as caught:
        Request(**wish)
    assert str(caught.value) == "--force and --reason go together: say in a sentence why the gate is passed by."


def test_a_champion_that_changed_while_the_gate_was_judging_stays(
    reported, client, write_model_dir, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline import promote as module

    write_model_dir(MODEL, inverted=True)
    reported.run("register")
    ask(force=True, reason="to be beaten")
    whole = module.judge_versions

    def judge_slowly(*arguments):
        verdict = whole(*arguments)
        # Meanwhile, on another host.
        write_model_dir(Path("other"), seed=3)
        other, _ = ensure_version(client, "unet", Path("other"))
        move_champion(client, "unet", lambda _: Move(action="forced", version=other.number, reason="quicker"))
        return verdict

    monkeypatch.setattr(module, "judge_versions", judge_slowly)
    write_model_dir(MODEL)
    reported.run("register")
    with pytest.raises(RegistryError) as caught:
        ask()
    assert str(caught.value) == (
        "the champion changed while the gate was judging: version 2 then, version 3 now. Run `unet promote` again."
    )
    assert tracking.version_by_alias(client, "unet", tracking.CHAMPION).number == "3"
    # What was found is not lost: the next one who looks at these images knows of it.
    assert (verdict()["version"], verdict()["against"], verdict()["decision"]) == ("1", "2", "promoted")
    tags = tracking.find_version(client, "unet", challenger()).tags
    assert (tags["gate.decision"], tags["gate.against"]) == ("promoted", "2")
    assert tags[TEST_SET_TAG] == verdict()["test_set_sha256"]
