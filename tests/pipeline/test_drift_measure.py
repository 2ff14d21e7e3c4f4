import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.drift_measure import measure_training
from pipeline.drift_reference import find_reference, hash_training_set
from pipeline.placement import read_placement
from unet_core.errors import DataError
from unet_core.index import read_index
from unet_core.reader import ShardReader
from unet_core.samples import ClassMap

SHARDS = Path("data/shards")


@pytest.fixture
def with_model(sharded, write_model_dir):
    """Shards of twelve pairs, and a model that finds bright pixels."""
    write_model_dir(Path("model"))
    return sharded


def measure(most: int = 100):
    return measure_training("model", shards=SHARDS, most=most, placement=read_placement())


def test_training_images_have_the_traits_that_a_look_at_them_tells(with_model) -> None:
    found = measure()
    samples = sorted(ShardReader(SHARDS, read_index(SHARDS).of_split("train")), key=lambda sample: sample.key)
    assert found.num_images == len(found.images) == len(samples) > 2
    for traits, sample in zip(found.images, samples, strict=True):
        assert (traits.height, traits.width) == (12, 16)
        assert traits.means == pytest.approx([sample.image.mean() / 255], rel=1e-4)
        assert traits.deviations == pytest.approx([sample.image.std() / 255], rel=1e-4)
        # This model's masks are those that were drawn.
        assert traits.shares == pytest.approx({"cell": (sample.mask == 1).mean()}, rel=1e-4)
        assert len(traits.embedding) == 4


def test_tiles_are_put_together_to_the_image_that_they_were_cut_from(with_model) -> None:
    whole = measure()
    with_model.write_recipe(shard={"tile_px": 7})
    with_model.run("shard")
    cut = measure()
    assert (cut.num_images, len(cut.images)) == (whole.num_images, whole.num_images)
    for one, other in zip(cut.images, whole.images, strict=True):
        assert (one.height, one.width, one.means, one.deviations) == (
            other.height, other.width, other.means, other.deviations,
        )  # fmt: skip
        assert one.shares == other.shares


def test_of_many_images_a_fixed_choice_is_measured(with_model) -> None:
    found, again = measure(most=3), measure(most=3)
    assert found == again
    assert (len(found.images), found.num_images) == (3, measure().num_images)
    assert all(traits in measure().images for traits in found.images)


def test_what_was_measured_is_kept_and_other_shards_are_measured_anew(with_model) -> None:
    def find(may_store: bool = True):
        return find_reference(
            "model", model_sha256="m1", shards=SHARDS, most=100, placement=read_placement(), may_store=may_store
        )

    first = find(may_store=False)
    assert not Path(".unet/drift").exists()
    assert find() == first
    (kept,) = Path(".unet/drift").iterdir()
    # The model is not read again.
    Path("model").rename("gone")
    assert find() == first
    kept.write_text("{")
    Path("gone").rename("model")
    assert find() == first
    with_model.add_pairs(["later1", "later2", "later3", "later4"])
    with_model.record()
    with_model.run("ingest", "validate", "split", "shard")
    assert find().training_sha256 != first.training_sha256
    assert find().num_images > first.num_images


def test_shares_of_masks_are_of_all_training_pixels(with_model) -> None:
    index = read_index(SHARDS)
    found = find_reference(
        "model", model_sha256="m", shards=SHARDS, most=100, placement=read_placement(), may_store=False
    )
    assert found.training_sha256 == hash_training_set(index)
    masks = np.stack([sample.mask for sample in ShardReader(SHARDS, index.of_split("train"))])
    assert found.mask_shares == pytest.approx({"background": (masks == 0).mean(), "cell": (masks == 1).mean()})


def test_shards_of_other_classes_are_not_the_models_training_data(with_model, write_model_dir) -> None:
    shutil.rmtree("model")
    write_model_dir(Path("model"), ClassMap(kind="multiclass", classes={"soil": 0, "crop": 255}, background="soil"))
    with pytest.raises(DataError) as caught:
        measure()
    assert str(caught.value) == (
        "not the model's training data: data/shards: classes background, cell; the model has soil, crop. "
        "Go back to the commit of the model, or name another model."
    )
