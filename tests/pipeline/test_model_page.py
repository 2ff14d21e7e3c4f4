from dataclasses import replace

import numpy as np
import pytest

from pipeline.model_page import (
    MAX_CHARACTERS,
    describe_data,
    describe_scores,
    describe_use,
    describe_version,
    example_images,
    with_section,
)
from unet_core.model import ModelConfig, ModelSpec
from unet_core.samples import ClassMap, ImageConfig

SPEC = ModelSpec(
    config=ModelConfig(width=8, depth=3, norm="batch", input_statistics="train"),
    images=ImageConfig(channels=1),
    class_map=ClassMap(kind="multilabel", classes={"ring": 255, "filled_circle": 255}),
    mean=(0.5,),
    deviation=(0.5,),
    precision="float32",
)
BODY = {
    "dice": 0.9123,
    "interval_95": [0.9, 0.92],
    "images": 63,
    "groups": 60,
    "class_dice": {"ring": 0.8, "filled_circle": None},
    "class_dice_interval_95": {"ring": [0.7, 0.9], "filled_circle": None},
}


def test_a_version_says_what_it_segments_and_how_it_was_trained() -> None:
    params = {"epochs": "12", "optimizer": "adamw", "learning_rate": "0.01", "seed": "0"}
    tags = {"git.commit": "0123456789abcdef", "git.dirty": "true", "train.workers": "2 workers from step 0"}
    assert describe_version(SPEC, params, tags).split("\n\n") == [
        "Gives a mask to each of 2 classes, which may overlap: ring, filled\\_circle.",
        "Takes gray images of 8 bits and any size.",
        "U-Net of width 8, depth 3, norm batch, in float32.",
        "Trained with 12 epochs, optimizer adamw, learning rate 0.01, seed 0, 2 workers from step 0.",
        "Source: commit `0123456789ab` with changes.",
    ]


def test_a_version_says_that_it_computes_at_half_the_resolution() -> None:
    text = describe_version(replace(SPEC, config=replace(SPEC.config, stem_stride=2)), {}, {})
    assert "U-Net of width 8, depth 3, norm batch, at 1/2 of the resolution inside, in float32." in text


def test_a_version_names_its_encoder() -> None:
    config = ModelConfig(**ModelConfig.complete({"encoder": "resnet18", "input_statistics": "train"}))
    text = describe_version(replace(SPEC, config=config), {}, {})
    assert "U-Net with encoder resnet18, in float32." in text
    begun = replace(config, encoder_weights={"path": "a.pth", "sha256": "b"})
    text = describe_version(replace(SPEC, config=begun), {}, {})
    assert "U-Net with encoder resnet18, begun with weights of sha256 b, in float32." in text


def test_what_nobody_knows_is_left_out() -> None:
    text = describe_version(SPEC, {}, {})
    assert "Trained" not in text
    assert "commit" not in text


def test_of_many_classes_some_are_named_and_the_rest_is_counted() -> None:
    classes = {f"class {number}": 255 for number in range(40)}
    text = describe_version(replace(SPEC, class_map=ClassMap(kind="multilabel", classes=classes)), {}, {})
    assert "40 classes, which may overlap: class 0, " in text
    assert text.splitlines()[0].endswith("class 11 and 28 more.")


def test_use_shows_shapes_and_address() -> None:
    text = describe_use(SPEC, "models:/unet/3")
    assert "unet predict FOLDER --model models:/unet/3 --out masks" in text
    assert "(N, H, W, 1) uint8 -> (N, H, W, 2) uint8" in text


def test_data_are_counted_by_split() -> None:
    splits = ["train", "train", "val", "test", None]
    assert describe_data(splits) == "2 training, 1 validation, 1 test images."


def test_scores_are_a_table_with_intervals_and_the_picture_of_cases() -> None:
    text = describe_scores(BODY, "dice", "run7")
    assert text.splitlines()[:5] == [
        "| | dice | 95 % interval |",
        "|---|---|---|",
        "| mean of 63 images in 60 groups | 0.912 | 0.900 to 0.920 |",
        "| ring | 0.800 | 0.700 to 0.900 |",
        "| filled\\_circle | undefined | too few groups |",
    ]
    assert text.endswith("![cases](get-artifact?path=evaluation%2Fcases.png&run_uuid=run7)")


def test_a_section_is_put_in_the_place_of_its_older_self_and_all_else_stays() -> None:
    text = with_section(with_section("Mine.", "Data", "old\n\n# not a title of ours"), "Use", "so")
    assert text == (
        "Mine.\n\n### Data\n\nold\n\n# not a title of ours\n\n<!-- end of Data -->\n\n"
        "### Use\n\nso\n\n<!-- end of Use -->"
    )
    again = with_section(text, "Data", "new")
    assert again == ("Mine.\n\n### Data\n\nnew\n\n<!-- end of Data -->\n\n### Use\n\nso\n\n<!-- end of Use -->")
    assert with_section(again, "Data", "new") == again
    assert with_section(again, "Use", "so") == again
    assert with_section("", "Data", "new") == "### Data\n\nnew\n\n<!-- end of Data -->"


def test_a_note_below_a_section_stays() -> None:
    text = with_section(with_section("", "Data", "old"), "Test scores", "0.9") + "\n\nNot for scanner B.\n\n> Ada"
    for title, body in (("Test scores", "0.8"), ("Data", "new"), ("Test scores", "0.7")):
        text = with_section(text, title, body)
    assert text == (
        "### Data\n\nnew\n\n<!-- end of Data -->\n\n### Test scores\n\n0.7\n\n<!-- end of Test scores -->\n\n"
        "Not for scanner B.\n\n> Ada"
    )


def test_a_section_of_an_older_page_reaches_to_the_next_title() -> None:
    older = "Mine.\n\n### Data\n\nold\n\n### Use\n\nso"
    assert with_section(older, "Data", "new") == "Mine.\n\n### Data\n\nnew\n\n<!-- end of Data -->\n\n### Use\n\nso"


def test_a_section_too_long_for_mlflow_is_cut_by_lines_and_says_so() -> None:
    note = "a" * 4800
    text = with_section(note, "Data", "first line\n" + "b" * 200)
    assert text == f"{note}\n\n### Data\n\nfirst line\n\n(Cut: MLflow takes 5000 characters.)\n\n<!-- end of Data -->"
    long = with_section(note, "Data", "\n".join(["line"] * 100))
    assert MAX_CHARACTERS - 5 < len(long) <= MAX_CHARACTERS
    assert with_section("a" * 4990, "Data", "b" * 100) == "a" * 4990


@pytest.mark.parametrize(("bits", "channels"), [(8, 1), (8, 3), (16, 2)])
def test_the_example_is_an_image_such_as_the_model_takes(bits: int, channels: int) -> None:
    images = example_images(replace(SPEC, images=ImageConfig(channels=channels, bits=bits)))
    assert images.shape == (1, 32, 32, channels)
    assert images.dtype == np.dtype(f"uint{bits}")
    assert images[0, 16, 16].min() > images[0, 0, 0].max() > 0
