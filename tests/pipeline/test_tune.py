"""Learning rates and batch sizes, tried on real shards."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from unet_core.errors import RecipeError, TrainingError
from unet_core.sweep import Load, Sweep
from unet_core.train_config import TrainConfig

pytestmark = pytest.mark.slow

SHARDS, OUT = Path("data/shards"), Path("reports/tune.png")


def test_fewer_samples_than_lanes_are_told(sharded) -> None:
    from pipeline.tune import tune

    sharded.write_recipe(train={"lanes": 64})
    with pytest.raises(TrainingError, match=r"^too few training samples: \d+ for 64 lanes\. Add data, or lower train"):
        tune(shards=SHARDS, out=OUT, quick=True)


def test_the_curve_of_a_loss_that_never_falls_is_drawn(tree) -> None:
    from pipeline.tune import draw

    load = Load(samples_per_lane=1, images_per_second=1.0, peak_mb=None)
    for losses in ((1.0, 2.0, 3.0), ()):
        sweep = Sweep(rates=(1e-5, 1e-4, 1e-3)[: len(losses)], losses=losses)
        OUT.unlink(missing_ok=True)
        draw(OUT, sweep, [load])
        assert OUT.is_file()
        with pytest.raises(TrainingError, match=r"^the loss falls at no learning rate\. Run"):
            _ = sweep.steepest


def test_the_picture_has_the_name_that_was_given(tree) -> None:
    from pipeline.tune import draw

    for name, begin in (("reports/plain", b"\x89PNG"), ("reports/odd.ending", b"\x89PNG"), ("reports/a.pdf", b"%PDF")):
        draw(Path(name), Sweep(rates=(1e-5, 1e-4), losses=(1.0, 0.5)), [])
        assert Path(name).read_bytes().startswith(begin)


def test_memory_of_a_step_grows_with_its_samples_though_freed_memory_is_kept() -> None:
    # In a process of its own, since the setting stays.
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    large, small, large_again = map(float, done.stdout.split())
    assert large > 2 * small
    assert abs(large_again - large) < 0.3 * large


PEAKS = """
import torch
from pipeline.memory import keep_freed_memory
from pipeline.tune import _begin_peak, _peak_mb
keep_freed_memory()
for megabytes in (400, 100, 400):
    before = _begin_peak()
    torch.ones(megabytes * 2**18)
    print(_peak_mb() - before)
"""


def test_accumulation_that_was_not_measured_is_in_the_lines(sharded, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.tune import tune

    sharded.write_recipe(
        model={"width": 8, "depth": 2, "norm": "none"}, train={"lanes": 2, "samples_per_lane": 2, "accumulate": 2}
    )
    tune(shards=SHARDS, out=OUT, quick=True)
    assert "\n  accumulate: 1  # as measured; the recipe has 2\n" in capsys.readouterr().out


def test_samples_that_batch_norm_cannot_take_are_left_out(sharded, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.tune import tune

    # A crop is one pixel at the deepest level: 2 * 2**2. Five samples are two a lane, one step of two.
    model = {"width": 8, "depth": 2, "norm": "batch", "stem_stride": 2}
    sharded.write_recipe(model=model, augment={"crop_px": 8}, train={"lanes": 2})
    tune(shards=SHARDS, out=OUT, quick=True)
    told = capsys.readouterr().out
    assert re.match(r"samples_per_lane 1: left out: batch norm would see a single value\nsamples_per_lane 2: \d", told)
    assert yaml.safe_load(told.partition("train of params.yaml:\n")[2])["samples_per_lane"] > 1


@pytest.mark.parametrize("exact", [True, False])
def test_where_batch_norm_can_take_no_number_of_samples_that_is_told(sharded, exact: bool) -> None:
    from pipeline.tune import tune

    # A lane has one sample.
    sharded.write_recipe(model={"width": 8, "depth": 2}, augment={"crop_px": 4}, train={"lanes": 4, "exact": exact})
    with pytest.raises(
        RecipeError, match=r"^model\.norm: batch: images of 4x4 pixels have one pixel left at depth 2, "
    ):
        tune(shards=SHARDS, out=OUT, quick=True)


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
