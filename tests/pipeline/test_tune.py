"""Learning rates and batch sizes, tried on real shards."""

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from unet_core.train_config import TrainConfig

pytestmark = pytest.mark.slow

SHARDS, OUT = Path("data/shards"), Path("reports/tune.png")


def test_lines_for_the_recipe_are_printed_and_the_curves_drawn(sharded, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.tune import tune

    sharded.write_recipe(model={"width": 8, "depth": 2, "norm": "none"}, train={"lanes": 2})
    before = Path("params.yaml").read_bytes()
    tune(shards=SHARDS, out=OUT, quick=True)
    told = capsys.readouterr().out
    assert re.match(r"samples_per_lane 1: \d+(\.\d+)? images/s, \d+ MB a step\nsamples_per_lane 2: ", told)
    _, _, lines = told.partition("for the section train of params.yaml:\n")
    found = yaml.safe_load(lines)
    assert set(found) == {"samples_per_lane", "learning_rate"}
    recipe = yaml.safe_load(before)["train"] | found
    assert TrainConfig(**recipe).learning_rate < 1
    with Image.open(OUT) as picture:
        assert picture.width > 600
    assert Path("params.yaml").read_bytes() == before
