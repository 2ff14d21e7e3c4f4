import contextlib
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.catalog import read_catalog
from pipeline.init import SHIPPED, choose_ledger, init, write_recipe
from pipeline.ledger import read_ledger
from pipeline.listing import find_pairs
from pipeline.look import Look, look_at
from pipeline.params import RECIPE, SECTIONS, load_section
from pipeline.source import IngestConfig
from pipeline.stages.validate import ValidateConfig
from unet_core.errors import DataError, RecipeError, StorageError, UnetError
from unet_core.samples import ClassMap, ImageConfig
from unet_core.splits import SplitConfig
from unet_core.train_config import TrainConfig

SOURCE = Path("mine")


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def put(values: list[int], *, channels: int = 1, count: int = 4, masks: str = "masks", source: Path = SOURCE) -> None:
    """Images of 20 x 16 and masks with columns of these values."""
    for number in range(count):
        # No two alike, or they would be duplicates.
        image = np.full((16, 20, 3) if channels == 3 else (16, 20), 90 + number, dtype=np.uint8)
        save(source / "images" / f"{number:03d}.png", image)
        columns = [values[column * len(values) // 20] for column in range(20)]
        dtype = np.uint16 if max(values) > 255 else np.uint8
        save(source / masks / f"{number:03d}.png", np.tile(np.array(columns, dtype=dtype), (16, 1)))


def load_written(source: Path, look: Look) -> dict[str, object]:
    """Write the recipe and load what the light stages read of it."""
    RECIPE.write_text(write_recipe(str(source), look), encoding="utf-8")
    classes: Mapping[str, type] = {
        "ingest": IngestConfig,
        "images": ImageConfig,
        "masks": ClassMap,
        "validate": ValidateConfig,
        "split": SplitConfig,
        "train": TrainConfig,
    }
    return {name: load_section(name, cls) for name, cls in classes.items()}


def test_binary_masks_of_colour_images_are_background_and_foreground(tree) -> None:
    put([0, 255], channels=3)
    look = look_at(str(SOURCE))
    assert (look.num_images, look.modes, look.sizes) == (4, {"RGB": 4}, {(20, 16): 4})
    assert (look.meaning.kind, look.meaning.classes) == ("multiclass", {"background": 0, "foreground": 255})
    assert (look.meaning.ignore, look.meaning.background, look.table) == (None, "background", None)
    recipe = load_written(SOURCE, look)
    assert recipe["masks"] == ClassMap(
        kind="multiclass", classes={"background": 0, "foreground": 255}, background="background"
    )
    assert recipe["images"].channels == 3  # type: ignore[attr-defined]
    assert recipe["train"].loss == {"cross_entropy": 0.5, "dice": 0.5}  # type: ignore[attr-defined]


def test_index_masks_with_255_have_an_ignore_value(tree) -> None:
    put([0, 1, 2, 255])
    look = look_at(str(SOURCE))
    assert look.meaning.classes == {"class_0": 0, "class_1": 1, "class_2": 2}
    assert (look.meaning.ignore, look.meaning.background) == (255, None)
    recipe = load_written(SOURCE, look)
    assert recipe["masks"].ignore == 255  # type: ignore[attr-defined]
    assert recipe["images"].channels == 1  # type: ignore[attr-defined]


def test_255_beside_254_is_a_class_like_any_other(tree) -> None:
    put([0, 253, 254, 255])
    look = look_at(str(SOURCE))
    assert look.meaning.ignore is None
    assert list(look.meaning.classes.values()) == [0, 253, 254, 255]


def test_a_folder_for_each_class_means_overlapping_classes(tree) -> None:
    put([0, 255], masks="masks/ring")
    put([0, 100], masks="masks/plus")
    put([0, 0], masks="masks/rare")
    look = look_at(str(SOURCE))
    assert look.meaning.kind == "multilabel"
    assert look.meaning.classes == {"plus": 100, "rare": 255, "ring": 255}
    recipe = load_written(SOURCE, look)
    assert recipe["masks"] == ClassMap(kind="multilabel", classes={"plus": 100, "rare": 255, "ring": 255})
    assert recipe["train"].loss == {"bce": 0.5, "dice": 0.5}  # type: ignore[attr-defined]


@pytest.mark.parametrize("values", [[1, 255], [0, 1], [3, 7], [0, 128, 255], [0, 1, 2], [0, 300], [7, 8, 9, 255]])
def test_every_recipe_that_is_written_can_be_loaded_and_knows_every_value(tree, values: list[int]) -> None:
    put(values)
    masks = load_written(SOURCE, look_at(str(SOURCE)))["masks"]
    assert isinstance(masks, ClassMap)
    assert {*masks.classes.values(), masks.ignore} - {None} == set(values)


@pytest.mark.parametrize("name", ["ring", "x y", "größe", "1", "yes", "a: b"])
def test_a_class_may_have_the_name_of_any_folder(tree, name: str) -> None:
    put([0, 255], masks=f"masks/{name}")
    assert load_written(SOURCE, look_at(str(SOURCE)))["masks"] == ClassMap(kind="multilabel", classes={name: 255})


@pytest.mark.parametrize("name", ["mine", "my data", "2024", "scans #2"])
def test_a_source_may_have_any_name(tree, name: str) -> None:
    put([0, 255], source=Path(name))
    ingest = load_written(Path(name), look_at(name))["ingest"]
    assert isinstance(ingest, IngestConfig)
    assert ingest.source == name
    assert ingest.ledger == f"arrivals/{name}.jsonl"


def refusal(source: Path = SOURCE) -> str:
    with pytest.raises(DataError) as caught:
        look_at(str(source))
    return str(caught.value)


def test_masks_of_many_values_are_refused_with_what_they_may_be(tree) -> None:
    save(SOURCE / "images" / "a.png", np.zeros((4, 40), dtype=np.uint8))
    save(SOURCE / "masks" / "a.png", np.tile(np.arange(40, dtype=np.uint8), (4, 1)))
    assert refusal() == (
        "masks with 40 values: mine/masks/a.png and others: [0, 1, 2, 3, 4, 5] ... 39. If they are smoothed binary masks, threshold "
        "them to 0 and 255; if they number objects, write them with 16 bits."
    )


def test_masks_of_one_value_are_refused(tree) -> None:
    put([0])
    assert refusal() == "masks with one value: mine/masks/000.png and others: all pixels are 0: nothing to learn."


def test_a_class_folder_of_several_values_is_refused(tree) -> None:
    put([0, 1, 2], masks="masks/ring")
    assert refusal() == (
        "not a binary mask: mine/masks/ring/000.png and others of ring: values [1, 2]. "
        "The masks of one class hold 0 and one value."
    )


def test_colour_masks_are_refused(tree) -> None:
    put([0, 255])
    save(SOURCE / "masks" / "000.png", np.random.default_rng(0).integers(0, 255, (16, 20, 3), dtype=np.uint8))
    assert refusal().startswith("mask is a colour image: mine/masks/000.png: more than 32 colours.")


def test_without_images_or_masks_it_says_where_they_belong(tree) -> None:
    SOURCE.mkdir()
    assert refusal() == (
        "images and masks are not found in mine: it has 0 files. Put images in images/ and masks of the same names in "
        "masks/, or copy a recipe to params.yaml and describe your folders there (docs/data.md), then `unet add`."
    )
    save(SOURCE / "images" / "a.png", np.zeros((4, 4), dtype=np.uint8))
    assert refusal().startswith("images and masks are not found in mine: it has 1 files, such as images/a.png. ")


def test_an_image_that_cannot_be_read_is_named(tree) -> None:
    put([0, 255])
    (SOURCE / "images" / "000.png").write_bytes(b"no picture")
    assert refusal().startswith("image can't be read: mine/images/000.png: ")


def put_files(values: Mapping[str, np.ndarray]) -> Look:
    for name, array in values.items():
        save(SOURCE / name, array)
    return look_at(str(SOURCE))


GRAY = np.full((8, 8), 90, dtype=np.uint8)
HALF = np.tile(np.repeat(np.array([0, 255], dtype=np.uint8), 4), (8, 1))
COLOURS = np.zeros((8, 8, 3), dtype=np.uint8)
COLOURS[:4, :, 0] = 255
IDS = np.arange(64, dtype=np.uint16).reshape(8, 8)


@pytest.mark.parametrize(
    ("images", "masks", "expected"),
    [
        (
            ("training/{}_training.tif", "21 22"),
            ("1st_manual/{}_manual1.gif", "21 22"),
            ("training/{key}_training.*", "1st_manual/{key}_manual1.*"),
        ),
        (
            ("s/{}/images/{}.png", "x y"),
            ("s/{}/masks/{}.png", "x y"),
            ("s/{key}/images/*.*", "s/{key}/masks/*.*"),
        ),
        (("{}.png", "a b"), ("{}_mask.png", "a b"), ("{key}.*", "{key}_mask.*")),
        (("scan_{}.png", "01 02"), ("label_{}.png", "01 02"), None),
        (
            ("train/images/{}.png", "a b"),
            ("train/labels/{}.png", "a b"),
            ("train/images/{key}.*", "train/labels/{key}.*"),
        ),
    ],
)
def test_patterns_are_proposed_for_how_people_keep_their_data(
    tree, images: tuple[str, str], masks: tuple[str, str], expected: tuple[str, str] | None
) -> None:
    files = {images[0].replace("{}", key): GRAY for key in images[1].split()}
    files |= {masks[0].replace("{}", key): HALF for key in masks[1].split()}
    if expected is None:
        with pytest.raises(
            DataError, match=r"^images and masks are not found in mine: it has 4 files, such as label_01"
        ):
            put_files(files)
        return
    look = put_files(files)
    assert (look.layout.image_pattern, look.layout.mask_pattern) == expected
    recipe = load_written(SOURCE, look)
    assert len(find_pairs("mine", recipe["ingest"], recipe["masks"])) == 2  # type: ignore[arg-type]


def test_folders_that_are_splits_declare_them_and_are_part_of_the_key_where_names_repeat(tree) -> None:
    places = [
        f"{split}/{kind}/00{number}.png"
        for split in ("train", "val")
        for kind in ("images", "masks")
        for number in "12"
    ]
    look = put_files({name: GRAY if "images" in name else HALF for name in places})
    assert (look.layout.image_pattern, look.layout.key) == ("{split}/images/{key}.*", "{split}_{key}")
    recipe = load_written(SOURCE, look)
    assert recipe["split"].declared == {"train": "train", "val": "test"}  # type: ignore[attr-defined]
    pairs = find_pairs("mine", recipe["ingest"], recipe["masks"])  # type: ignore[arg-type]
    assert {pair.key: pair.split for pair in pairs}["val_002"] == "val"


def test_other_folders_are_groups(tree) -> None:
    places = [f"{kind}/{group}/{group}_{n}.png" for group in "pqr" for kind in ("images", "masks") for n in "12"]
    look = put_files({name: GRAY if "images" in name else HALF for name in places})
    assert (look.layout.image_pattern, look.layout.mask_pattern) == ("images/{group}/{key}.*", "masks/{group}/{key}.*")


def test_colours_are_classes(tree) -> None:
    look = put_files({"images/a.png": GRAY, "masks/a.png": COLOURS})
    assert look.meaning.kind == "multiclass"
    assert look.meaning.classes == {"colour_000000": [0, 0, 0], "colour_ff0000": [255, 0, 0]}
    assert "colour_ff0000: [255, 0, 0]" in write_recipe("mine", look)


def test_numbers_of_16_bits_and_a_file_per_object_are_instances(tree) -> None:
    look = put_files({"images/a.png": GRAY, "masks/a.png": IDS})
    assert (look.meaning.kind, look.meaning.classes) == ("instances", {"background": 0, "object": 1})
    several = {"n/x/images/x.png": GRAY, "n/x/masks/1.png": HALF, "n/x/masks/2.png": HALF, "n/y/images/y.png": GRAY}
    for name, array in {**several, "n/y/masks/1.png": HALF}.items():
        save(Path("objects") / name, array)
    look = look_at("objects")
    assert (look.layout.image_pattern, look.meaning.kind) == ("n/{key}/images/*.*", "instances")


def test_another_folder_of_the_same_name_has_a_ledger_of_its_own(tree) -> None:
    tree.add_pairs(["a", "b"])
    tree.write_recipe()
    assert choose_ledger("raw") == "arrivals/raw.jsonl"
    tree.record()
    assert choose_ledger("raw") == "arrivals/raw.jsonl"
    save(Path("other/raw/images/a.png"), GRAY)
    assert choose_ledger("other/raw/") == "arrivals/raw-2.jsonl"
    # The same data at another place are the same source.
    Path("moved").mkdir()
    Path("raw").rename("moved/raw")
    assert choose_ledger("moved/raw") == "arrivals/raw.jsonl"


def declare(text: str, name: str = "splits.txt") -> SplitConfig:
    (SOURCE / name).write_text(text, encoding="utf-8")
    split = load_written(SOURCE, look_at(str(SOURCE)))["split"]
    assert isinstance(split, SplitConfig)
    return split


def test_declared_splits_are_found_in_a_text(tree) -> None:
    put([0, 255])
    split = declare("train 000\nvalidation 001\ntest 002\ntrain 003\n")
    assert split.declared == {"train": "train", "validation": "val", "test": "test"}
    ingest = load_section("ingest", IngestConfig)
    assert (ingest.table, ingest.table_columns, ingest.split_column) == ("splits.txt", ["split", "key"], "split")


def test_declared_splits_are_found_in_a_csv(tree) -> None:
    put([0, 255])
    split = declare("name,width,split\n000,20,train\n001,20,val\n002,20,test\n003,20,train\n", "index.csv")
    assert split.declared == {"train": "train", "val": "val", "test": "test"}
    ingest = load_section("ingest", IngestConfig)
    assert (ingest.table, ingest.table_columns, ingest.key_column) == ("index.csv", None, "name")


def test_without_test_images_the_validation_images_are_the_test(tree) -> None:
    put([0, 255])
    assert declare("train 000\nval 001\ntrain 002\ntrain 003\n").declared == {"train": "train", "val": "test"}


@pytest.mark.parametrize(
    "text",
    ["train 000\nval 001\n", "left 000\nright 001\nleft 002\nleft 003\n", "000\n001\n002\n003\n", "", "train 000 x\n"],
    ids=["keys missing", "other words", "one column", "empty", "three columns"],
)
def test_a_text_that_declares_nothing_is_left_alone(tree, text: str) -> None:
    put([0, 255])
    assert declare(text).declared == {}
    assert load_section("ingest", IngestConfig).table is None


def test_an_unknown_recipe_names_the_known_ones(tree, repository: Path) -> None:
    put([0, 255])
    Path("recipes").symlink_to(repository / "recipes")
    with pytest.raises(RecipeError) as caught:
        init(source=str(SOURCE), recipe="shape", force=False)
    known = sorted(path.stem for path in (repository / "recipes").glob("*.yaml"))
    assert str(caught.value) == f"no such recipe: shape. Choose from {known}."
    assert not RECIPE.exists()


def test_a_recipe_of_ones_own_is_not_replaced(tree) -> None:
    put([0, 255])
    RECIPE.write_text("mine: 1\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        init(source=str(SOURCE), recipe=None, force=False)
    assert str(caught.value) == (
        "params.yaml is your own. Replace it with --force (the old one stays as params.yaml.old)."
    )
    assert RECIPE.read_text(encoding="utf-8") == "mine: 1\n"


def test_a_missing_folder_is_named(tree) -> None:
    with pytest.raises(DataError, match=r"^no such folder: none. Give the folder that holds images and masks.$"):
        init(source="none", recipe=None, force=False)


def test_the_recipe_of_the_repository_may_be_replaced(repository: Path) -> None:
    """Otherwise a fresh clone would ask for --force."""
    assert (repository / RECIPE).read_bytes() == (repository / SHIPPED).read_bytes()


def test_a_failed_attempt_can_be_repeated_once_the_data_are_mended(tree) -> None:
    put([0, 255])
    (SOURCE / "masks" / "003.png").unlink()
    with pytest.raises(DataError, match=r"^image without mask: "):
        init(source=str(SOURCE), recipe=None, force=False)
    put([0, 255])
    # There is no DVC here; whoever gets as far as recording is past the check.
    with pytest.raises(StorageError):
        init(source=str(SOURCE), recipe=None, force=False)


def test_two_failed_attempts_by_force_keep_the_users_recipe(tree) -> None:
    put([0, 255])
    (SOURCE / "masks" / "003.png").unlink()
    RECIPE.write_text("mine: 1\n", encoding="utf-8")
    for _ in range(2):
        with contextlib.suppress(UnetError):
            init(source=str(SOURCE), recipe=None, force=True)
    kept = [path.read_text(encoding="utf-8") for path in Path().glob("params.yaml*")]
    assert "mine: 1\n" in kept


def test_an_attempt_by_force_that_ends_otherwise_keeps_the_users_recipe_too(tree) -> None:
    """Recording hashes every file, which takes a while: people interrupt it, and places can't be written."""
    put([0, 255])
    RECIPE.write_text("mine: 1\n", encoding="utf-8")
    Path("arrivals").write_text("a file where a folder should be", encoding="utf-8")
    with pytest.raises(OSError, match="arrivals"):
        init(source=str(SOURCE), recipe=None, force=True)
    assert "mine: 1\n" in [path.read_text(encoding="utf-8") for path in Path().glob("params.yaml*")]


@pytest.mark.slow
def test_the_whole_command_says_what_it_saw_and_records_it(dvc_tree, capsys: pytest.CaptureFixture[str]) -> None:
    put([0, 1, 2, 255])
    save(SOURCE / "images" / "000.png", np.zeros((16, 24), dtype=np.uint8))
    save(SOURCE / "masks" / "000.png", np.zeros((16, 24), dtype=np.uint8))
    (SOURCE / "splits.txt").write_text("train 000\nval 001\ntrain 002\ntest 003\n", encoding="utf-8")
    init(source=str(SOURCE), recipe=None, force=False)
    assert capsys.readouterr().out.splitlines() == [
        "mine: 4 images, images/{key}.*",
        "  sizes (width x height): 20x16 (3), 24x16 (1)",
        "  modes: L (4)",
        "  masks: masks/{key}.*",
        "  multiclass: class_0 = 0, class_1 = 1, class_2 = 2",
        "  value 255 looks like an ignore value: neither trained on nor scored",
        "  splits declared in splits.txt: test, train, val",
        "batch 1 recorded in arrivals/mine.jsonl: 4 new, 0 changed, 0 removed",
        "recipe written: params.yaml; read it through, above all `masks` and `split`",
        "next: dvc repro",
    ]
    assert len(read_ledger(Path("arrivals/mine.jsonl"))) == 4
    assert Path("arrivals/mine.jsonl.dvc").is_file()
    dvc_tree.run("ingest", "validate", "split")
    assert len(read_catalog(Path("data/accepted.parquet"))) == 4


@pytest.mark.slow
def test_by_force_the_old_recipe_is_kept_beside_the_new_one(dvc_tree) -> None:
    put([0, 255])
    RECIPE.write_text("mine: 1\n", encoding="utf-8")
    init(source=str(SOURCE), recipe=None, force=True)
    assert Path("params.yaml.old").read_text(encoding="utf-8") == "mine: 1\n"
    assert load_section("ingest", IngestConfig).source == "mine"


@pytest.mark.slow
def test_a_named_recipe_is_taken_as_it_is_for_ones_own_folder(dvc_tree, repository: Path) -> None:
    put([0, 255], channels=3)
    (SOURCE / "index.csv").write_text("id,split\n" + "".join(f"{n:03d},train\n" for n in range(4)), encoding="utf-8")
    Path("recipes").symlink_to(repository / "recipes")
    init(source=str(SOURCE), recipe="dsb2018", force=False)
    written, shipped = (
        path.read_text(encoding="utf-8").splitlines() for path in (RECIPE, Path("recipes/dsb2018.yaml"))
    )
    assert load_section("ingest", IngestConfig).source == "mine"
    assert sum(one != other for one, other in zip(written, shipped, strict=True)) <= 2
    assert load_section("ingest", IngestConfig).ledger == "arrivals/mine.jsonl"


def extract(datasets: Path, name: str, folder: Path) -> Path:
    with tarfile.open(datasets / f"{name}.tar") as archive:
        wanted = [m for m in archive if m.name.split("/")[1:2] and m.name.split("/")[1] != "instances"]
        # Python 3.11.2 knows no filters, and newer ones ask for one.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder, members=wanted)
    return folder / name


REAL = {
    "dsb2018": (
        {"RGBA": 664},
        {"background": 0, "foreground": 255},
        None,
        {"train": "train", "val": "val", "test": "test"},
    ),
    "isbi2012": ({"L": 30}, {"background": 0, "foreground": 255}, None, {"train": "train", "val": "test"}),
    "cwfid_small": (
        {"RGB": 24},
        {"class_0": 0, "class_1": 1, "class_2": 2},
        255,
        {"train": "train", "val": "test"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(REAL))
def test_real_data_are_understood(tree, datasets: Path, name: str) -> None:
    if not (datasets / f"{name}.tar").is_file():
        pytest.skip(f"{name}.tar is not among the real data sets")
    modes, classes, ignore, declared = REAL[name]
    source = extract(datasets, name, tree.root)
    look = look_at(str(source))
    assert (look.meaning.kind, look.modes, look.meaning.classes, look.meaning.ignore) == (
        "multiclass",
        modes,
        classes,
        ignore,
    )
    recipe = load_written(source, look)
    assert recipe["split"].declared == declared  # type: ignore[attr-defined]
    pairs = find_pairs(str(source), recipe["ingest"], recipe["masks"])  # type: ignore[arg-type]
    assert len(pairs) == look.num_images


def test_a_written_recipe_has_every_section(tree) -> None:
    import yaml

    put([0, 255])
    assert tuple(yaml.safe_load(write_recipe(str(SOURCE), look_at(str(SOURCE))))) == tuple(SECTIONS)


def test_deep_gray_images_get_one_channel_and_a_choice_of_black_and_white(tree) -> None:
    put([0, 255])
    for number in range(4):
        deep = np.tile(np.arange(20, dtype=np.uint16) * 900 + number, (16, 1))
        save(SOURCE / "images" / f"{number:03d}.png", deep)
    images = load_written(SOURCE, look_at(str(SOURCE)))["images"]
    assert images == ImageConfig(channels=1, percentiles=(1, 99))


def test_images_of_another_sensor_get_all_their_channels(tree) -> None:
    put([0, 255])
    for number in range(4):
        (SOURCE / "images" / f"{number:03d}.png").unlink()
        pixels = np.full((16, 20, 5), number, np.uint8)
        tifffile.imwrite(
            SOURCE / "images" / f"{number:03d}.tif", pixels, photometric="minisblack", planarconfig="contig"
        )
    look = look_at(str(SOURCE))
    assert (look.channels, look.is_deep, look.sizes) == (5, False, {(20, 16): 4})


def test_no_more_files_are_looked_at_than_promised() -> None:
    from pipeline.look import _spread

    for count in (1, 16, 17, 199, 200, 201, 399, 400, 401):
        assert 0 < len(_spread(range(count))) <= 200  # type: ignore[arg-type]


def test_the_old_recipe_is_safe_before_anything_is_recorded(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    put([0, 255])
    RECIPE.write_text("mine: true\n")
    monkeypatch.setattr("pipeline.init.add", lambda: os._exit(9))
    if (child := os.fork()) == 0:
        init(source=str(SOURCE), recipe=None, force=True)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert RECIPE.with_name("params.yaml.old").read_text() == "mine: true\n"


def test_two_ways_to_draw_the_foreground_are_two_classes_and_nothing_is_ignored(tree) -> None:
    put([0, 1], count=2)
    put([0, 255], count=2, masks="other")
    for number in range(2):
        (SOURCE / "other" / f"{number:03d}.png").rename(SOURCE / "masks" / f"{number + 2:03d}.png")
        save(SOURCE / "images" / f"{number + 2:03d}.png", np.full((16, 20), 120 + number, np.uint8))
    (SOURCE / "other").rmdir()
    masks = load_written(SOURCE, look_at(str(SOURCE)))["masks"]
    assert masks == ClassMap(kind="multiclass", classes={"class_0": 0, "class_1": 1, "class_255": 255})
