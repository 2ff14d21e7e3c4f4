from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from unet_core.errors import TrainingError
from unet_core.index import read_index
from unet_core.model_config import IMAGENET_DEVIATION, IMAGENET_MEAN, ModelSpec
from unet_core.train_config import TrainConfig

pytestmark = pytest.mark.slow


def test_the_network_follows_recipe_and_data(sharded) -> None:
    from pipeline.worker import read_recipe

    index = read_index(Path("data/shards"))
    spec, config, _ = read_recipe(index)
    assert (spec.mean, spec.deviation) == index.train_statistics()
    assert (spec.channels, spec.class_map, spec.precision) == (1, index.class_map, config.precision)


def test_imagenets_statistics_are_for_colour_images_only(small_data) -> None:
    from pipeline.worker import read_recipe

    for channels in (1, 3):
        small_data.write_recipe(images={"channels": channels}, model={"input_statistics": "imagenet"})
        small_data.run("ingest", "validate", "split", "shard")
        index = read_index(Path("data/shards"))
        if channels == 3:
            spec, _, _ = read_recipe(index)
            assert (spec.mean, spec.deviation) == (IMAGENET_MEAN, IMAGENET_DEVIATION)
        else:
            with pytest.raises(TrainingError, match=r"^model.input_statistics: imagenet is for RGB images. "):
                read_recipe(index)


def test_an_encoder_takes_imagenets_statistics_for_gray_images_too(small_data) -> None:
    from pipeline.worker import read_recipe

    small_data.run("ingest", "validate", "split", "shard")
    recipe = yaml.safe_load(Path("params.yaml").read_text())
    recipe["model"] = {"encoder": "mobilenet_v2", "input_statistics": "imagenet"}
    Path("params.yaml").write_text(yaml.safe_dump(recipe))
    spec, _, _ = read_recipe(read_index(Path("data/shards")))
    assert (spec.channels, spec.mean, spec.deviation) == (1, IMAGENET_MEAN, IMAGENET_DEVIATION)


def test_imagenets_statistics_are_for_8_bits_only(small_data) -> None:
    from pipeline.worker import read_recipe

    small_data.write_recipe(images={"channels": 3, "bits": 16}, model={"input_statistics": "imagenet"})
    small_data.run("ingest", "validate", "split", "shard")
    with pytest.raises(
        TrainingError, match=r"^model.input_statistics: imagenet is for images of 8 bits a channel, not"
    ):
        read_recipe(read_index(Path("data/shards")))


def test_class_weights_become_numbers_of_the_training_images(small_data) -> None:
    from pipeline.worker import read_recipe

    small_data.run("ingest", "validate", "split", "shard")
    index = read_index(Path("data/shards"))
    pixels = index.class_pixels("train").values()
    small_data.write_recipe(train={"class_weights": "inverse"})
    _, config, _ = read_recipe(index)
    assert config.class_weights == pytest.approx([sum(pixels) / len(pixels) / count for count in pixels])
    small_data.write_recipe(train={"class_weights": [1.0, 2.5]})
    _, config, _ = read_recipe(index)
    assert config.class_weights == [1.0, 2.5]


def named(spec: ModelSpec, config: TrainConfig, path: Path) -> tuple[ModelSpec, TrainConfig]:
    return spec, replace(config, initial_weights={"path": str(path), "sha256": "0" * 64})


def test_the_driver_gives_weights_of_its_tree_and_no_others(sharded, tmp_path_factory: pytest.TempPathFactory) -> None:
    from pipeline.worker import read_recipe, read_weights

    spec, config, _ = read_recipe(read_index(Path("data/shards")))
    assert read_weights(spec, config) == {}
    inside, outside = Path("weights/begin.bin"), tmp_path_factory.mktemp("shared") / "begin.bin"
    inside.parent.mkdir()
    for path in (inside, outside):
        path.write_bytes(b"weights")
    assert read_weights(*named(spec, config, inside)) == {"weights/begin.bin": b"weights"}
    # What lies outside, hosts share or lack; what is missing, the trainer tells of.
    outside_by_name = Path("..", *outside.parts[-2:])
    for path in (outside, outside_by_name, Path("weights/none.bin")):
        assert read_weights(*named(spec, config, path)) == {}


def test_a_host_without_the_weights_finds_the_drivers_while_it_needs_them(tree) -> None:
    from pipeline.worker import weights_at_hand

    path = Path("weights/begin.bin")
    with weights_at_hand({str(path): b"the driver's"}):
        folder = Path.cwd()
        assert folder != tree.root
        assert path.read_bytes() == b"the driver's"
    assert Path.cwd() == tree.root
    assert not folder.exists()
    path.parent.mkdir()
    path.write_bytes(b"of this host")
    for weights in ({}, {str(path): b"the driver's"}):
        with weights_at_hand(weights):
            # Whether they are the recipe's, the trainer looks.
            assert path.read_bytes() == b"of this host"


def test_the_next_report_comes_after_about_two_seconds() -> None:
    from pipeline.worker import _steps_to_next_report

    assert _steps_to_next_report(1, 0.1) == 20
    assert _steps_to_next_report(20, 4.0) == 10
    # A step of many seconds is told at once, and a tiny one's report still comes.
    assert _steps_to_next_report(1, 60.0) == 1
    assert _steps_to_next_report(1000, 0.0) == 1000
