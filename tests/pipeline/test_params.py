import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from pipeline.params import SECTIONS, change_recipe, flatten, load_section
from pipeline.recipe_check import CLASSES
from unet_core.checkpoint import read_model, write_model
from unet_core.errors import RecipeError
from unet_core.model import ModelConfig, ModelSpec, UNet
from unet_core.model_config import PRESETS
from unet_core.samples import ClassMap, ImageConfig
from unet_core.splits import SplitConfig

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """A section with a field of every type that recipes use."""

    count: int
    rate: float
    name: str
    flag: bool
    kind: Literal["adam", "adamw"]
    channels: Literal[1, 3] = 1
    limit: int | None = None
    weights: Mapping[str, float] | None = None
    entries: Sequence[Mapping[str, Any]] = ()


GOOD = "count: 3, rate: 0.5, name: unet, flag: true, kind: adam"


def load(tmp_path: Path, body: str) -> Knobs:
    path = tmp_path / "params.yaml"
    path.write_text(f"train: {body}\n", encoding="utf-8")
    return load_section("train", Knobs, path)


def refusal(tmp_path: Path, body: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, body)
    return str(caught.value)


def test_there_is_a_recipe_to_test() -> None:
    assert RECIPES


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipe_loads(recipe: Path, section: str) -> None:
    assert isinstance(load_section(section, CLASSES[section], recipe), CLASSES[section])


def test_values_arrive_as_written(tmp_path: Path) -> None:
    body = f"{{{GOOD}, limit: 7, weights: {{bce: 1, dice: 0.5}}, entries: [{{name: D4, p: 1.0}}]}}"
    assert load(tmp_path, body) == Knobs(
        count=3,
        rate=0.5,
        name="unet",
        flag=True,
        kind="adam",
        limit=7,
        weights={"bce": 1, "dice": 0.5},
        entries=[{"name": "D4", "p": 1.0}],
    )


def load_model(tmp_path: Path, body: str) -> ModelConfig:
    path = tmp_path / "params.yaml"
    path.write_text(f"model: {body}\n", encoding="utf-8")
    return load_section("model", ModelConfig, path)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_whole_network(tmp_path: Path, name: str) -> None:
    assert load_model(tmp_path, f"{{preset: {name}}}") == ModelConfig(**PRESETS[name])


def test_knobs_beside_a_preset_go_before(tmp_path: Path) -> None:
    found = load_model(tmp_path, "{width: 24, preset: small, attention: true}")
    assert found == replace(ModelConfig(**PRESETS["small"]), width=24, attention=True)


def test_the_preset_of_the_tutorial_is_its_recipes_network(tmp_path: Path) -> None:
    (recipe,) = (path for path in RECIPES if path.stem == "tutorial")
    assert load_model(tmp_path, "{preset: tutorial}") == load_section("model", ModelConfig, recipe)


def test_a_model_remembers_the_knobs_that_its_preset_stood_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_model(tmp_path, "{preset: small}")
    spec = ModelSpec(
        config=config,
        images=ImageConfig(channels=1),
        class_map=ClassMap(kind="multilabel", classes={"cell": 1}),
        mean=(0.5,),
        deviation=(0.5,),
        precision="float32",
    )
    write_model(tmp_path / "model", spec, UNet(spec).state_dict())
    monkeypatch.setattr(ModelConfig, "presets", {"small": {**PRESETS["small"], "width": 99}})
    written = json.loads((tmp_path / "model/model.json").read_text(encoding="utf-8"))["config"]
    assert (written["width"], written["norm"], "preset" in written) == (16, "group", False)
    assert read_model(tmp_path / "model")[1].config == config


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{preset: smal}", "unknown preset: {path}: model: smal. Did you mean small?"),
        ("{preset: 3}", "unknown preset: {path}: model: 3. Known presets: tutorial, paper, small, base, large."),
        ("{presets: small}", "unknown key: {path}: model: presets. Did you mean preset?"),
        ("{preset: small, widht: 3}", "unknown key: {path}: model: widht. Did you mean width?"),
    ],
)
def test_a_preset_that_is_not_there_is_refused(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_model(tmp_path, body)
    assert str(caught.value) == message.format(path=tmp_path / "params.yaml")


def test_an_encoder_is_a_whole_network(tmp_path: Path) -> None:
    found = load_model(tmp_path, "{encoder: resnet34, input_statistics: imagenet}")
    assert found == ModelConfig(width=16, depth=5, norm="batch", input_statistics="imagenet", encoder="resnet34")
    for body, message in (
        (
            "{encoder: resnet18, input_statistics: train, norm: group}",
            "model.encoder: resnet18: the network around an encoder is given, norm can't be chosen. Remove them, or the "
            "preset that stands for them.",
        ),
        (
            "{encoder: resnet18}",
            f"missing key: {tmp_path}/params.yaml: model: input_statistics. Add it; recipes/ shows examples.",
        ),
        (
            "{encoder: null, input_statistics: train}",
            f"missing key: {tmp_path}/params.yaml: model: width. Add it; recipes/ shows examples.",
        ),
        (
            "{encoder: resnet, input_statistics: train}",
            f"wrong type: {tmp_path}/params.yaml: model.encoder: expected one of resnet18, resnet34, resnet50, resnet101, "
            "resnext50_32x4d, mobilenet_v2 or null, got 'resnet'.",
        ),
    ):
        with pytest.raises(RecipeError) as caught:
            load_model(tmp_path, body)
        assert str(caught.value) == message


def test_presets_belong_to_sections_that_have_some(tmp_path: Path) -> None:
    assert "unknown key" in refusal(tmp_path, f"{{{GOOD}, preset: small}}")


def test_a_whole_number_is_a_number(tmp_path: Path) -> None:
    assert load(tmp_path, f"{{{GOOD.replace('0.5', '1')}}}").rate == 1


def test_null_is_a_value_of_an_optional_field(tmp_path: Path) -> None:
    assert load(tmp_path, f"{{{GOOD}, limit: null}}").limit is None


def test_unknown_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    text = refusal(tmp_path, f"{{{GOOD}, cuont: 3}}")
    assert text == f"unknown key: {tmp_path / 'params.yaml'}: train: cuont. Did you mean count?"


def test_unknown_key_far_from_all_lists_the_known_ones(tmp_path: Path) -> None:
    assert "zzz. Known keys: count, rate, name, flag, kind" in refusal(tmp_path, f"{{{GOOD}, zzz: 3}}")


def test_unknown_section_names_the_nearest_known_one(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"train: {{{GOOD}}}\nmodle: {{}}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"^unknown key: .*params.yaml: modle. Did you mean model\?$"):
        load_section("train", Knobs, path)


def test_missing_section_is_named(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("model: {}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"^missing section: .*params.yaml: train. Copy it from a recipe in recipes/"):
        load_section("train", Knobs, path)


def test_missing_key_is_named(tmp_path: Path) -> None:
    text = refusal(tmp_path, "{count: 3, rate: 0.5, name: unet, kind: adam}")
    assert text == f"missing key: {tmp_path / 'params.yaml'}: train: flag. Add it; recipes/ shows examples."


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("count: 3", "count: true", "train.count: expected a whole number, got True."),
        ("count: 3", "count: 3.0", "train.count: expected a whole number, got 3.0."),
        ("count: 3", "count: '3'", "train.count: expected a whole number, got '3'."),
        ("count: 3", "count: null", "train.count: expected a whole number, got None."),
        ("rate: 0.5", "rate: false", "train.rate: expected a number, got False."),
        ("rate: 0.5", "rate: [1]", "train.rate: expected a number, got [1]."),
        ("name: unet", "name: 7", "train.name: expected a text, got 7."),
        ("flag: true", "flag: 1", "train.flag: expected true or false, got 1."),
        ("kind: adam", "kind: sgd", "train.kind: expected one of adam, adamw, got 'sgd'."),
        ("kind: adam", "kind: [adam]", "train.kind: expected one of adam, adamw, got ['adam']."),
        ("kind: adam", "kind: adam, limit: x", "train.limit: expected a whole number or null, got 'x'."),
        ("kind: adam", "kind: adam, weights: [1]", "expected a text: a number pairs or null, got [1]."),
        ("kind: adam", "kind: adam, weights: {dice: true}", "got {'dice': True}."),
        ("kind: adam", "kind: adam, weights: {1: 0.5}", "got {1: 0.5}."),
        ("kind: adam", "kind: adam, entries: {name: D4}", "expected a list of a text: a value pairs, got"),
        ("kind: adam", "kind: adam, entries: [D4]", "expected a list of a text: a value pairs, got ['D4']."),
    ],
)
def test_wrong_type_is_refused_with_what_was_expected(tmp_path: Path, old: str, new: str, expected: str) -> None:
    text = refusal(tmp_path, f"{{{GOOD.replace(old, new)}}}")
    assert text.startswith("wrong type: ")
    assert expected in text


@pytest.mark.parametrize("value", ["true", "1.0"])
def test_a_choice_of_numbers_takes_whole_numbers_only(tmp_path: Path, value: str) -> None:
    assert "train.channels: expected one of 1, 3" in refusal(tmp_path, f"{{{GOOD}, channels: {value}}}")


@pytest.mark.parametrize("body", ["[count]", "7", "null"])
def test_a_section_that_holds_no_keys_is_refused(tmp_path: Path, body: str) -> None:
    assert "params.yaml: train: expected keys and values, got" in refusal(tmp_path, body)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    assert "count" in refusal(tmp_path, f"{{{GOOD}, count: 4}}")


def test_a_power_of_ten_without_a_point_is_a_number(tmp_path: Path) -> None:
    # As for DVC, which reads the same file by YAML 1.2.
    assert load(tmp_path, f"{{{GOOD.replace('0.5', '1e-3')}}}").rate == 0.001


def test_what_is_not_yaml_is_refused_in_one_line(tmp_path: Path) -> None:
    text = refusal(tmp_path, "{count: [}")
    assert text.startswith(f"not valid YAML: {tmp_path / 'params.yaml'}: ")
    assert "\n" not in text


@pytest.mark.parametrize("text", ["", "- train\n", "train\n"])
def test_what_has_no_sections_is_no_recipe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"^not a recipe: .*params.yaml: expected sections, got"):
        load_section("train", Knobs, path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"train: {name: K\xfcche}\n")
    with pytest.raises(RecipeError, match=r"params\.yaml"):
        load_section("train", Knobs, path)


def test_a_missing_recipe_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^no recipe: .*none.yaml. Run `unet init --source FOLDER`, or copy one"):
        load_section("train", Knobs, tmp_path / "none.yaml")


def test_a_value_that_cannot_work_is_refused_by_the_section_itself(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("split: {seed: 0, val_fraction: 0.6, test_fraction: 0.4}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="leave nothing to train on"):
        load_section("split", SplitConfig, path)


TEXT = """\
# what it is for
train:
  epochs: 12                    # as long as it takes
  loss: {bce: 0.5, dice: 0.5}
model:
  # how wide
  width: 8
"""


def test_a_changed_recipe_keeps_comments_and_order() -> None:
    found = change_recipe(TEXT, {"train.epochs": 3, "train.loss": {"dice": 1.0}, "model.norm": "batch"})
    assert (
        found
        == """\
# what it is for
train:
  epochs: 3                    # as long as it takes
  loss: {"dice": 1.0}
model:
  norm: "batch"
  # how wide
  width: 8
"""
    )


@pytest.mark.parametrize("name", ["shapes", "tutorial", "dsb2018", "isbi2012", "cwfid"])
def test_every_recipe_of_ours_can_be_changed(repository: Path, name: str) -> None:
    text = (repository / "recipes" / f"{name}.yaml").read_text()
    found = change_recipe(text, {"train.learning_rate": 1e-05, "train.gradient_clip": None, "model.width": 24})
    before, after = yaml.safe_load(text), yaml.safe_load(found)
    changed = {"learning_rate": 1e-05, "gradient_clip": None}
    assert {**after["train"], "learning_rate": float(after["train"]["learning_rate"])} == before["train"] | changed
    assert after["model"] == before["model"] | {"width": 24}
    assert len(found.splitlines()) == len(text.splitlines())


def test_a_value_of_several_lines_is_not_changed() -> None:
    text = TEXT.replace("{bce: 0.5, dice: 0.5}", "\n    bce: 0.5\n    dice: 0.5")
    with pytest.raises(RecipeError) as caught:
        change_recipe(text, {"train.loss": {"dice": 1.0}})
    assert str(caught.value) == "can't be changed: params.yaml: train.loss. Write each of them in one line."


def test_a_section_that_is_missing_is_not_made_up() -> None:
    with pytest.raises(RecipeError, match=r"^missing section: params.yaml: augment\. "):
        change_recipe(TEXT, {"augment.crop_px": 64})


def test_a_section_in_one_line_is_not_missing() -> None:
    text = TEXT[: TEXT.index("model:")] + "model: {preset: base}\n"
    with pytest.raises(RecipeError) as caught:
        change_recipe(text, {"model.norm": "batch"})
    assert str(caught.value) == (
        "can't be changed: params.yaml: model: the section stands in one line. Give each key a line of its own."
    )


def test_nested_sections_become_one_level() -> None:
    assert flatten({"train": {"loss": {"dice": 1}, "epochs": 3}, "seed": 0}) == {
        "train.loss.dice": 1, "train.epochs": 3, "seed": 0,
    }  # fmt: skip
