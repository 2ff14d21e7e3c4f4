"""The gate's question, as tags."""

from pathlib import Path

from pipeline.question import RULES_TAG, TEST_SET_TAG, hash_test_set, question_tags


def test_other_rules_are_another_question_about_the_same_images(sharded) -> None:
    before = question_tags(Path("data/shards"))
    assert before == question_tags(Path("data/shards"))
    assert before[TEST_SET_TAG] == hash_test_set(Path("data/shards"))
    sharded.write_recipe(promote={"confidence": 0.8})
    after = question_tags(Path("data/shards"))
    assert after[TEST_SET_TAG] == before[TEST_SET_TAG]
    assert after[RULES_TAG] != before[RULES_TAG]


def test_a_learning_rate_is_no_other_question(sharded) -> None:
    before = question_tags(Path("data/shards"))
    sharded.write_recipe(train={"learning_rate": 0.123})
    assert question_tags(Path("data/shards")) == before
