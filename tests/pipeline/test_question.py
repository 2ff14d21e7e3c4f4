from pathlib import Path

import pytest

from pipeline.question import RULES_TAG, TEST_SET_TAG, question_tags

SHARDS = Path("data/shards")


def test_the_question_is_the_test_images_and_what_the_gate_reads_of_the_recipe(sharded) -> None:
    before = question_tags(SHARDS)
    assert set(before) == {TEST_SET_TAG, RULES_TAG}
    sharded.write_recipe(train={"epochs": 99})
    assert question_tags(SHARDS) == before
    for section, changes in (("promote", {"margin": 0.01}), ("evaluate", {"score": "iou"})):
        sharded.write_recipe(**{section: changes})
        after = question_tags(SHARDS)
        assert after[TEST_SET_TAG] == before[TEST_SET_TAG]
        assert after[RULES_TAG] != before[RULES_TAG]


@pytest.mark.slow
def test_other_test_images_are_another_question(sharded) -> None:
    before = question_tags(SHARDS)
    sharded.add_pairs([f"t{number:02d}" for number in range(12)])
    sharded.record()
    sharded.run("ingest", "validate", "split", "shard")
    after = question_tags(SHARDS)
    assert after[TEST_SET_TAG] != before[TEST_SET_TAG]
    assert after[RULES_TAG] == before[RULES_TAG]
