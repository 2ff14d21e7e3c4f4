from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.predict import find_images, predict
from unet_core.errors import DataError, ModelError
from unet_core.samples import ClassMap, ImageConfig

OUT = Path("out")
INDEXED = ClassMap(kind="multiclass", classes={"soil": 3, "crop": 7, "weed": 9}, ignore=255, background="soil")
PLANES = ClassMap(kind="multilabel", classes={"ring": 255, "plus": 100})


def put(path: Path, size: tuple[int, int] = (9, 6), mode: str = "L") -> np.ndarray:
    """A dark picture with a bright rectangle; where it is bright, (H, W) bool."""
    bright = np.zeros(size[::-1], dtype=bool)
    bright[1:4, 2:6] = True
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((bright * 255).astype(np.uint8)).convert(mode).save(path)
    return bright


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_files_and_everything_below_folders_are_found_once(tree) -> None:
    for path in ("a/1.png", "a/deep/2.JPG", "b.tif"):
        put(Path(path))
    Path("a/notes.txt").write_text("x", encoding="utf-8")
    Path("a/.hidden.png").write_bytes(b"x")
    found = find_images([Path("b.tif"), Path("a"), Path("a/1.png")])
    assert found == [Path("b.tif"), Path("a/1.png"), Path("a/deep/2.JPG")]


@pytest.mark.parametrize("path", ["none.png", "empty"])
def test_a_path_without_images_is_named(tree, path: str) -> None:
    Path("empty").mkdir()
    put(Path("a.png"))
    with pytest.raises(DataError, match=rf"^no images: {path}. Give image files, or folders with \['.bmp'"):
        find_images([Path("a.png"), Path(path)])


def test_two_images_of_one_name_are_refused_before_anything_is_written(tree, write_model_dir) -> None:
    write_model_dir(Path("model"))
    put(Path("a/1.png"))
    put(Path("b/1.png"))
    with pytest.raises(DataError) as caught:
        predict([Path("a"), Path("b")], out=OUT, model="model")
    assert str(caught.value) == "two images of one name: a/1.png and b/1.png. Predict them into two folders."
    assert not OUT.exists()


def test_masks_have_the_original_size_and_the_recipes_pixel_values(
    tree, write_model_dir, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model_dir(Path("model"), INDEXED)
    wanted = {name: put(Path("images") / f"{name}.png", size) for name, size in {"a": (9, 6), "b": (33, 17)}.items()}
    predict([Path("images")], out=OUT, model="model")
    for name, bright in wanted.items():
        assert (read(OUT / "masks" / f"{name}.png") == np.where(bright, 7, 3)).all()
        shown = read(OUT / "overlays" / f"{name}.png")
        assert shown.shape == (*bright.shape, 3)
        assert (shown[~bright] == 0).all()
        assert (shown[bright] != 255).any(axis=-1).all()
    assert capsys.readouterr().out == "2 masks in out/masks, overlays in out/overlays\n"


def test_overlapping_classes_have_a_folder_each(tree, write_model_dir) -> None:
    write_model_dir(Path("model"), PLANES)
    bright = put(Path("a.png"))
    predict([Path("a.png")], out=OUT, model="model")
    assert (read(OUT / "masks" / "ring" / "a.png") == np.where(bright, 255, 0)).all()
    assert (read(OUT / "masks" / "plus" / "a.png") == np.where(bright, 100, 0)).all()
    assert read(OUT / "overlays" / "a.png").shape == (*bright.shape, 3)


@pytest.mark.parametrize(
    "class_map",
    [
        ClassMap(kind="multiclass", classes={"soil": 0, "crop": 1000}),
        ClassMap(kind="multilabel", classes={"ring": 1000}),
    ],
    ids=["multiclass", "multilabel"],
)
def test_pixel_values_of_sixteen_bits_come_out_as_they_went_in(tree, write_model_dir, class_map: ClassMap) -> None:
    write_model_dir(Path("model"), class_map)
    bright = put(Path("a.png"))
    predict([Path("a.png")], out=OUT, model="model")
    (path,) = (OUT / "masks").rglob("a.png")
    assert (read(path) == np.where(bright, 1000, 0)).all()


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 1), ("L", 3), ("RGBA", 3)])
def test_gray_and_colour_convert_into_each_other(tree, write_model_dir, mode: str, channels: int) -> None:
    write_model_dir(Path("model"), channels=channels)
    bright = put(Path("a.png"), mode=mode)
    predict([Path("a.png")], out=OUT, model="model")
    assert (read(OUT / "masks" / "a.png") == np.where(bright, 255, 0)).all()


def test_a_file_that_is_no_image_is_named(tree, write_model_dir) -> None:
    write_model_dir(Path("model"))
    Path("a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"^image can't be read: a.png: "):
        predict([Path("a.png")], out=OUT, model="model")


def test_a_folder_that_is_no_model_is_named(tree) -> None:
    put(Path("a.png"))
    Path("model").mkdir()
    with pytest.raises(ModelError, match=r"^not a model directory: model/model.json: "):
        predict([Path("a.png")], out=OUT, model="model")


def test_predicting_again_gives_equal_bytes(tree, write_model_dir) -> None:
    write_model_dir(Path("model"), INDEXED)
    put(Path("a.png"))
    for out in ("one", "two"):
        predict([Path("a.png")], out=Path(out), model="model")
    for name in ("masks/a.png", "overlays/a.png"):
        assert (Path("one") / name).read_bytes() == (Path("two") / name).read_bytes()


def test_where_only_results_are_left_to_predict_that_is_said(tree, write_model_dir) -> None:
    write_model_dir(Path("model"))
    put(Path("out/masks/a.png"))
    with pytest.raises(DataError, match=r"^no images: out"):
        predict([Path("out")], out=OUT, model="model")


def test_results_of_an_earlier_prediction_are_no_images(tree, write_model_dir) -> None:
    write_model_dir(Path("model"))
    put(Path("pictures/a.png"))
    for _ in range(2):
        predict([Path("pictures")], out=Path("pictures/predicted"), model="model")
    assert [path.name for path in Path("pictures/predicted/masks").iterdir()] == ["a.png"]


def test_images_are_read_as_those_that_the_model_was_trained_on(tree, write_model_dir) -> None:
    images = ImageConfig(channels=1, bits=16, value_range=[0, 1000])
    write_model_dir(Path("model"), images=images)
    bright = put(Path("a.png"))
    Image.fromarray(np.where(bright, 1000, 0).astype(np.uint16)).save("a.png")
    predict([Path("a.png")], out=OUT, model="model")
    assert (read(OUT / "masks" / "a.png") == np.where(bright, 255, 0)).all()


def test_classes_in_colours_come_out_in_colours(tree, write_model_dir) -> None:
    write_model_dir(Path("model"), ClassMap(kind="multiclass", classes={"soil": "#102030", "crop": [255, 0, 128]}))
    bright = put(Path("a.png"))
    predict([Path("a.png")], out=OUT, model="model")
    assert (read(OUT / "masks" / "a.png") == np.where(bright[..., None], [255, 0, 128], [16, 32, 48])).all()
