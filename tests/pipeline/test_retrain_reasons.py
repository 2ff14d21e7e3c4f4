from dataclasses import replace

import pytest

from pipeline.retrain_reasons import Seen, find_reasons, is_stale, say_idle

IDLE = Seen(
    source="raw", ledger="arrivals/raw.jsonl", champion="3", champion_age_days=4.2, is_judged=True, is_recorded=True
)


def reasons_of(seen: Seen, *, max_age_days: float | None = None, force: str | None = None) -> list[tuple[str, str]]:
    return [(reason.kind, reason.text) for reason in find_reasons(seen, max_age_days=max_age_days, force=force)]


def test_where_all_is_as_it_was_there_is_no_reason_and_a_sentence_says_so() -> None:
    assert reasons_of(IDLE) == []
    assert say_idle(IDLE, "unet") == (
        "nothing to do: no new samples in raw, no changed recipe or code; of unet, version 3 is champion, "
        "made 4 days ago"
    )


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"new": 1}, "data", "1 new sample in raw"),
        ({"new": 3, "changed": 1, "missing": 2}, "data", "3 new, 1 changed, 2 missing samples in raw"),
        ({"is_first": True}, "first", "nothing was trained here yet"),
        (
            {"inputs": {"train": ["params.yaml: train.epochs", "params.yaml: train.seed"]}},
            "recipe",
            "changed recipe: train.epochs, train.seed",
        ),
        ({"inputs": {"report": ["params.yaml"]}}, "recipe", "changed recipe: a section that only commands read"),
        (
            {"inputs": {"train": ["unet_core/a.py", "unet_core/b.py"], "report": ["unet_core/c.py", "unet_core/d.py"]}},
            "code",
            "changed code: unet_core/a.py, unet_core/b.py, unet_core/c.py and 1 more",
        ),
        ({"inputs": {"train": ["constraints.txt"]}}, "code", "changed code: constraints.txt"),
        (
            {"inputs": {"ingest": ["arrivals/raw.jsonl"]}},
            "data",
            "recorded samples that no stage has seen, in arrivals/raw.jsonl",
        ),
        ({"inputs": {"ingest": ["raw"]}}, "data", "other files in raw, the same samples"),
        ({"inputs": {"train": ["data/shards"]}}, "results", "missing or unfinished results of train"),
        ({"unfinished": ["train", "register"]}, "results", "missing or unfinished results of register, train"),
        ({"is_recorded": False}, "record", "results that git does not have yet"),
        ({"unpushed": "retrain"}, "record", "branch retrain is not at origin yet"),
        ({"is_judged": False}, "gate", "the gate has not judged this model on today's test images"),
        ({"drift": "recent inputs differ: brightness"}, "drift", "recent inputs differ: brightness"),
        ({"is_half_moved": True}, "gate", "a move of the champion was stopped halfway"),
        ({"interrupted": ["2 new samples in raw"]}, "gate", "an earlier call was stopped (2 new samples in raw)"),
        ({"champion": None, "is_judged": None}, "champion", "there is no champion"),
    ],
)
def test_each_thing_that_is_seen_is_a_reason(changes, kind: str, text: str) -> None:
    assert reasons_of(replace(IDLE, **changes)) == [(kind, text)]


def test_new_data_and_a_changed_ledger_are_told_once() -> None:
    seen = replace(IDLE, new=2, inputs={"ingest": ["raw", "arrivals/raw.jsonl"]})
    assert reasons_of(seen) == [("data", "2 new samples in raw")]


def test_the_champions_age_counts_only_where_it_is_limited() -> None:
    old = replace(IDLE, champion_age_days=31.0)
    assert reasons_of(old) == []
    assert reasons_of(old, max_age_days=31) == []
    assert reasons_of(old, max_age_days=30) == [("age", "the champion is 31 days old, 30 allowed")]


def test_who_asks_for_it_is_a_reason() -> None:
    assert reasons_of(IDLE, force="a new processor") == [("force", "asked for: a new processor")]


def test_a_first_model_that_the_gate_refused_is_not_tried_again() -> None:
    refused = replace(IDLE, champion=None, champion_age_days=None, is_judged=True)
    assert reasons_of(refused) == []
    assert "of unet, the gate has let no version pass" in say_idle(refused, "unet")


def test_while_stages_are_stale_neither_record_nor_gate_are_behind() -> None:
    seen = replace(IDLE, new=0, inputs={"train": ["params.yaml: train.seed"]}, is_recorded=False, is_judged=False)
    assert is_stale(seen)
    assert reasons_of(seen) == [("recipe", "changed recipe: train.seed")]


def test_several_reasons_stand_in_the_order_of_the_road() -> None:
    seen = replace(IDLE, new=1, inputs={"train": ["pipeline/worker.py"]}, champion_age_days=99.0)
    kinds = [kind for kind, _ in reasons_of(seen, max_age_days=7, force="by hand")]
    assert kinds == ["data", "code", "age", "force"]


def test_a_password_in_the_sources_address_is_told_to_nobody() -> None:
    seen = replace(IDLE, source="s3://me:12345@bucket/raw")
    assert "12345" not in say_idle(seen, "unet")
    assert reasons_of(replace(seen, new=1)) == [("data", "1 new sample in s3://***@bucket/raw")]
