"""What the gate is asked: on which test images, by which rules. Versions carry it as tags, beside the answer.

The same question about the same model has the same answer, so a scheduler asks it once.
"""

import hashlib
import json
from pathlib import Path

from pipeline.params import read_sections
from unet_core.index import read_index

#: Tags of versions that were judged: the test images, the rules, and the answer.
TEST_SET_TAG = "gate.test_set_sha256"
RULES_TAG = "gate.rules_sha256"
DECISION_TAG = "gate.decision"
SENTENCE_TAG = "gate.sentence"


def hash_test_set(shards: Path) -> str:
    """sha256 of what the test shards hold: keys, files, and how they were read."""
    contents = sorted(shard.content for shard in read_index(shards).of_split("test"))
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()


def question_tags(shards: Path) -> dict[str, str]:
    """Today's question, as tags: test images, and the sections of the recipe that the gate reads."""
    recipe = read_sections()
    rules = json.dumps([recipe.get(section) for section in ("evaluate", "promote")], sort_keys=True, default=str)
    return {TEST_SET_TAG: hash_test_set(shards), RULES_TAG: hashlib.sha256(rules.encode()).hexdigest()}
