import json
import os
import subprocess
import sys
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline.parallel import map_parallel
from pipeline.predict import predict
from pipeline.predict_image import Options, Thumbnail
from unet_core.errors import DataError, ModelError, RecipeError
from unet_core.image_rows import open_image_rows
from unet_core.inference import Band
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


def run(
    places: list[Path],
    *,
    urls: Sequence[str] = (),
    out: Path = OUT,
    model: str = "model",
    save: str = "mask,overlay",
    **how: bool,
) -> None:
    options = Options(exact=how.get("exact", False), tta=how.get("tta", False), save=frozenset(save.split(",")))
    predict([*map(str, places), *urls], out=out, model=model, options=options)


def test_two_images_of_one_name_are_refused_before_anything_is_written(tree, write_model_dir) -> None:
    write_model_dir(Path("model"))
    put(Path("a/1.png"))
    put(Path("a/1.bmp"))
    with pytest.raises(DataError) as caught:
        run([Path("a")], out=OUT, model="model")
    assert str(caught.value) == "two images of one name: a/1.bmp and a/1.png. Predict them into two folders."
    assert not OUT.exists()


def test_images_of_one_name_in_two_folders_have_folders_of_results(
    tree, write_model_dir, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model_dir(Path("model"), INDEXED)
    wanted = {folder: put(Path(folder) / "1.png", size) for folder, size in (("a", (9, 6)), ("b", (12, 7)))}
    for _ in range(2):
        run([Path("a"), Path("b")], save="mask,polygons")
    for folder, bright in wanted.items():
        assert (read(OUT / "masks" / folder / "1.png") == np.where(bright, 7, 3)).all()
        assert (OUT / "polygons" / folder / "1.geojson").is_file()
    assert "2 of 2 images have results of this model with these options: skipped" in capsys.readouterr().out


#: In a process of its own, whose address space is limited for the second of three images.
STARVED = """
import resource
from pathlib import Path
from pipeline.model_files import open_model_files
from pipeline.predict_image import Job, Options, predict_job
options = Options(exact=False, tta=False, save=frozenset({"mask"}))
with open_model_files("model") as files:
    for number in range(3):
        if number == 1:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, resource.RLIM_INFINITY))
        job = Job(address=f"{number}.png", name=str(number), about={})
        print(predict_job(job, model=files, root=Path(), out=Path("out"), options=options).failure)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_an_image_without_memory_is_told_in_a_sentence_and_the_others_go_on(tree) -> None:
    from unet_core.checkpoint import write_model
    from unet_core.model import ModelConfig, ModelSpec, UNet

    spec = ModelSpec(
        config=ModelConfig(width=64, depth=1, norm="none", input_statistics="train"), images=ImageConfig(channels=1),
        class_map=INDEXED, mean=(0.5,), deviation=(0.5,), precision="float32",
    )  # fmt: skip
    write_model(Path("model"), spec, UNet(spec).state_dict())
    for number, side in enumerate((9, 800, 9)):
        put(Path(f"{number}.png"), (side, side))
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", STARVED], capture_output=True, text=True, check=False, env={**os.environ, **path}
    )
    assert done.stdout.splitlines() == [
        "None", "no memory. Predict fewer at a time: lower UNET_PROCESSES.", "None",
    ], done.stderr  # fmt: skip


def test_no_memory_is_told_apart_from_other_errors_of_torch() -> None:
    from pipeline.predict_image import is_out_of_memory

    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("sizes of tensors must match"))


@pytest.mark.slow
@pytest.mark.parametrize(("worth", "num_processes"), [(1e9, 1), (0.0, 2)])
def test_few_images_that_take_long_are_shared_after_the_first(
    tree, write_model_dir, monkeypatch: pytest.MonkeyPatch, worth: float, num_processes: int
) -> None:
    monkeypatch.setattr("pipeline.predict.WORTH_SECONDS", worth)
    monkeypatch.setenv("UNET_PROCESSES", "2")
    write_model_dir(Path("model"), INDEXED)
    for number in range(3):
        put(Path(f"a/{number}.png"))
    asked: list[int] = []
    monkeypatch.setattr(
        "pipeline.predict.map_parallel", lambda work, items, **how: (asked.append(how["few"]), map_parallel(work, items, **how))[1]
    )  # fmt: skip
    run([Path("a")])
    assert asked == [48 if num_processes == 1 else 0]
    assert len(list((OUT / "masks").iterdir())) == 3


def test_masks_have_the_original_size_and_the_recipes_pixel_values(
    tree, write_model_dir, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model_dir(Path("model"), INDEXED)
    wanted = {name: put(Path("images") / f"{name}.png", size) for name, size in {"a": (9, 6), "b": (33, 17)}.items()}
    run([Path("images")], out=OUT, model="model")
    for name, bright in wanted.items():
        assert (read(OUT / "masks" / f"{name}.png") == np.where(bright, 7, 3)).all()
        shown = read(OUT / "overlays" / f"{name}.png")
        assert shown.shape == (*bright.shape, 3)
        assert (shown[~bright] == 0).all()
        assert (shown[bright] != 255).any(axis=-1).all()
    assert capsys.readouterr().out == "2 images predicted: masks, overlays in out\n"


def test_overlapping_classes_have_a_folder_each(tree, write_model_dir) -> None:
    write_model_dir(Path("model"), PLANES)
    bright = put(Path("a.png"))
    run([Path("a.png")], out=OUT, model="model")
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
    run([Path("a.png")], out=OUT, model="model")
    (path,) = (OUT / "masks").rglob("a.png")
    assert (read(path) == np.where(bright, 1000, 0)).all()


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 1), ("L", 3), ("RGBA", 3)])
def test_gray_and_colour_convert_into_each_other(tree, write_model_dir, mode: str, channels: int) -> None:
    write_model_dir(Path("model"), channels=channels)
    bright = put(Path("a.png"), mode=mode)
    run([Path("a.png")], out=OUT, model="model")
    assert (read(OUT / "masks" / "a.png") == np.where(bright, 255, 0)).all()


def test_a_file_that_is_no_image_is_named_and_the_others_are_done(
    tree, write_model_dir, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model_dir(Path("model"))
    Path("a.png").write_bytes(b"no picture")
    put(Path("b.png"))
    with pytest.raises(DataError) as caught:
        run([Path("a.png"), Path("b.png")])
    assert str(caught.value) == (
        "1 of 2 images could not be predicted, the others are done:\n"
        "  a.png: image can't be read: a.png: it is no PNG, JPEG, TIFF, BMP, WebP or GIF file, or its header is damaged. "
        "Export the file again, or remove the sample."
    )
    assert Path("out/masks/b.png").exists()
    assert capsys.readouterr().out == "1 images predicted: masks, overlays in out\n"


def test_a_folder_that_is_no_model_is_named(tree) -> None:
    put(Path("a.png"))
    Path("model").mkdir()
    with pytest.raises(ModelError, match=r"^not a model directory: model/model.json: "):
        run([Path("a.png")], out=OUT, model="model")


def test_predicting_again_gives_equal_bytes(tree, write_model_dir) -> None:
    write_model_dir(Path("model"), INDEXED)
    put(Path("a.png"))
    for out in ("one", "two"):
        run([Path("a.png")], out=Path(out), model="model")
    for name in ("masks/a.png", "overlays/a.png"):
        assert (Path("one") / name).read_bytes() == (Path("two") / name).read_bytes()


def test_where_only_results_are_left_to_predict_that_is_said(tree, write_model_dir) -> None:
    write_model_dir(Path("model"))
    put(Path("out/masks/a.png"))
    with pytest.raises(DataError, match=r"^no images: out"):
        run([Path("out")], out=OUT, model="model")


def test_results_of_an_earlier_prediction_are_no_images(tree, write_model_dir) -> None:
    write_model_dir(Path("model"))
    put(Path("pictures/a.png"))
    for _ in range(2):
        run([Path("pictures")], out=Path("pictures/predicted"), model="model")
    assert [path.name for path in Path("pictures/predicted/masks").iterdir()] == ["a.png"]


def test_images_are_read_as_those_that_the_model_was_trained_on(tree, write_model_dir) -> None:
    images = ImageConfig(channels=1, bits=16, value_range=[0, 1000])
    write_model_dir(Path("model"), images=images)
    bright = put(Path("a.png"))
    Image.fromarray(np.where(bright, 1000, 0).astype(np.uint16)).save("a.png")
    run([Path("a.png")], out=OUT, model="model")
    assert (read(OUT / "masks" / "a.png") == np.where(bright, 255, 0)).all()


def test_classes_in_colours_come_out_in_colours(tree, write_model_dir) -> None:
    write_model_dir(Path("model"), ClassMap(kind="multiclass", classes={"soil": "#102030", "crop": [255, 0, 128]}))
    bright = put(Path("a.png"))
    run([Path("a.png")], out=OUT, model="model")
    assert (read(OUT / "masks" / "a.png") == np.where(bright[..., None], [255, 0, 128], [16, 32, 48])).all()


def test_everything_that_is_asked_for_is_saved(tree, write_model_dir) -> None:
    write_model_dir(Path("model"), INDEXED)
    bright = put(Path("a.png"))
    run([Path("a.png")], save="mask,probabilities,uncertainty,polygons,instances")
    assert sorted(str(path.relative_to(OUT)) for path in OUT.rglob("*") if path.is_file()) == [
        "instances/crop/a.png",
        "instances/weed/a.png",
        "masks/a.png",
        "polygons/a.geojson",
        "probabilities/a.tif",
        "records/a.json",
        "uncertainty/a.png",
    ]
    probabilities = tifffile.imread(OUT / "probabilities" / "a.tif")
    assert probabilities.shape == (6, 9, 3)
    assert probabilities.dtype == np.uint8
    assert (probabilities.argmax(axis=2) == np.where(bright, 1, 0)).all()
    assert (np.abs(probabilities.sum(axis=2, dtype=int) - 255) <= 2).all()
    assert read(OUT / "uncertainty" / "a.png").shape == bright.shape
    (feature,) = json.loads((OUT / "polygons" / "a.geojson").read_text())["features"]
    assert feature["properties"] == {"class": "crop"}
    assert sorted(map(tuple, feature["geometry"]["coordinates"][0][:-1])) == [(2, 1), (2, 4), (6, 1), (6, 4)]
    assert (read(OUT / "instances" / "crop" / "a.png") == bright).all()
    assert not read(OUT / "instances" / "weed" / "a.png").any()


def test_what_can_not_be_saved_is_refused(tree) -> None:
    with pytest.raises(RecipeError) as caught:
        run([Path("a.png")], save="mask,heatmap")
    assert str(caught.value) == (
        "--save: unknown: 'heatmap'. Choose among mask, overlay, probabilities, uncertainty, polygons, instances."
    )


def test_images_with_results_are_skipped_out_loud(tree, write_model_dir, capsys: pytest.CaptureFixture[str]) -> None:
    write_model_dir(Path("model"))
    put(Path("a/1.png"))
    run([Path("a")])
    capsys.readouterr()
    put(Path("a/2.png"))
    before = Path("out/masks/1.png").stat().st_mtime_ns
    run([Path("a")])
    assert capsys.readouterr().out == (
        "1 of 2 images have results of this model with these options: skipped\n"
        "1 images predicted: masks, overlays in out\n"
    )
    assert Path("out/masks/1.png").stat().st_mtime_ns == before


@pytest.mark.parametrize("change", ["model", "classes", "options", "image", "missing", "damaged"])
def test_results_that_are_not_these_are_made_anew(
    tree, write_model_dir, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    write_model_dir(Path("model"), INDEXED)
    put(Path("a.png"))
    run([Path("a.png")], save="mask,polygons")
    capsys.readouterr()
    save, told = "mask,polygons", "1 images have results of another model, other options or an older file"
    if change == "model":
        path = Path("model/model.safetensors")
        weights = load_file(path)
        save_file({name: tensor + 1 for name, tensor in weights.items()}, path)
    elif change == "classes":
        write_model_dir(Path("model"), replace(INDEXED, classes={"soil": 3, "crop": 8, "weed": 9}))
    elif change == "options":
        save = "mask"
    elif change == "image":
        put(Path("a.png"), (12, 6))
    elif change == "missing":
        Path("out/masks/a.png").unlink()
    else:
        Path("out/records/a.json").write_text('{"about":', encoding="utf-8")
        told = ""
    run([Path("a.png")], save=save)
    text = capsys.readouterr().out
    assert told in text
    assert "skipped" not in text
    assert "1 images predicted" in text
    # What is no longer asked for does not stay beside the new results.
    assert Path("out/polygons/a.geojson").exists() == (change != "options")


def test_a_record_names_no_file_outside_its_folder(tree, write_model_dir) -> None:
    write_model_dir(Path("model"))
    put(Path("a.png"))
    put(Path("precious.png"))
    Path("out/records").mkdir(parents=True)
    about = {"about": {}, "results": ["../precious.png"]}
    Path("out/records/a.json").write_text(json.dumps(about), encoding="utf-8")
    run([Path("a.png")])
    assert Path("precious.png").exists()


def test_a_file_that_goes_away_is_named(tree, write_model_dir) -> None:
    write_model_dir(Path("model"))
    Path("folder").mkdir()
    put(Path("folder/a.png"))
    Path("folder/b.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"\n  folder/b.png: a file is missing: folder/b.png\."):
        run([Path("folder")])
    assert Path("out/masks/a.png").exists()


def test_images_at_a_url_are_predicted(tree, write_model_dir) -> None:
    write_model_dir(Path("model"))
    bright = put(Path("a.png"))
    system = fsspec.filesystem("memory")
    system.pipe_file("/predict/url_a.png", Path("a.png").read_bytes())
    predict(
        ["memory://predict/*.png"],
        out=OUT,
        model="model",
        options=Options(exact=False, tta=False, save=frozenset({"mask"})),
    )
    assert (read(OUT / "masks" / "url_a.png") == np.where(bright, 255, 0)).all()


def test_an_image_at_a_url_that_has_changed_is_predicted_anew(
    tree, write_model_dir, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model_dir(Path("model"))
    put(Path("a.png"))
    address = f"file://{Path.cwd()}/a.png"
    for _ in range(2):
        run([], urls=[address])
    assert "1 of 1 images have results of this model with these options: skipped" in capsys.readouterr().out
    bright = put(Path("a.png"), (12, 6))
    run([], urls=[address])
    assert "older file: predicted anew" in capsys.readouterr().out
    assert (read(OUT / "masks" / "a.png") == np.where(bright, 255, 0)).all()


def write_large(path: Path, side: int = 100) -> np.ndarray:
    """A tiled TIFF with a bright rectangle."""
    bright = np.zeros((side, side + 10), dtype=bool)
    bright[30:80, 20:90] = True
    tifffile.imwrite(path, (bright * 255).astype(np.uint8), tile=(32, 32), compression="zlib", photometric="minisblack")
    return bright


def test_large_tiff_goes_through_by_rows_with_the_results_of_a_small_one(
    tree, write_model_dir, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model_dir(Path("model"), INDEXED)
    bright = write_large(Path("a.tif"))
    save = "mask,overlay,probabilities,uncertainty"
    run([Path("a.tif")], save=save, out=Path("small"))
    monkeypatch.setattr("pipeline.predict_image.LARGE_PIXELS", 5000)
    run([Path("a.tif")], save=save, out=Path("large"))
    assert sorted(str(path) for path in Path("large").rglob("*.tif*")) == [
        "large/masks/a.tif",
        "large/probabilities/a.tif",
        "large/uncertainty/a.tif",
    ]
    assert (tifffile.imread("large/masks/a.tif") == np.where(bright, 7, 3)).all()
    with tifffile.TiffFile("large/masks/a.tif") as file:
        assert file.pages.first.is_tiled
    assert (tifffile.imread("large/probabilities/a.tif") == tifffile.imread("small/probabilities/a.tif")).all()
    assert (tifffile.imread("large/uncertainty/a.tif") == read(Path("small/uncertainty/a.png"))).all()
    assert (read(Path("large/overlays/a.png")) == read(Path("small/overlays/a.png"))).all()


@pytest.mark.parametrize("name", ["a.tif", "a.TIFF"])
def test_large_tiff_at_a_url_has_the_results_of_a_local_one(
    tree, write_model_dir, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("pipeline.predict_image.LARGE_PIXELS", 5000)
    write_model_dir(Path("model"), INDEXED)
    write_large(Path(name))
    run([Path(name)], out=Path("here"), save="mask,overlay,probabilities")
    run([], urls=[f"file://{Path.cwd()}/{name}"], out=Path("url"), save="mask,overlay,probabilities")
    here, there = (
        {path.relative_to(out): path.read_bytes() for path in Path(out).rglob("*.*") if path.suffix != ".json"}
        for out in ("here", "url")
    )
    assert Path("masks/a.tif") in here
    assert there == here


def test_a_small_tiff_at_a_url_is_predicted_and_a_damaged_one_is_called_by_its_address(
    tree, write_model_dir, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model_dir(Path("model"), INDEXED)
    root = f"file://{Path.cwd()}"
    bright = write_large(Path("a.tif"))
    run([], urls=[f"{root}/a.tif"])
    assert (read(OUT / "masks" / "a.png") == np.where(bright, 7, 3)).all()
    Path("a.tif").write_bytes(b"II*\0 no picture")
    for least in (5000, 10**6):
        monkeypatch.setattr("pipeline.predict_image.LARGE_PIXELS", least)
        with pytest.raises(DataError, match=rf"\n  {root}/a\.tif: image can't be read: {root}/a\.tif: "):
            run([], urls=[f"{root}/a.tif"])


def test_large_overlapping_classes_have_a_file_each_and_a_small_overlay(
    tree, write_model_dir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.predict_image.LARGE_PIXELS", 5000)
    monkeypatch.setattr("pipeline.predict_image.OVERLAY_PX", 50)
    write_model_dir(Path("model"), PLANES)
    bright = write_large(Path("a.tif"))
    run([Path("a.tif")])
    assert (tifffile.imread("out/masks/plus/a.tif") == np.where(bright, 100, 0)).all()
    assert read(Path("out/overlays/a.png")).shape == (34, 37, 3)


def test_the_small_overlay_of_a_large_image_keeps_none_of_its_rows(tree) -> None:
    """A view of them would, and 20,000 rows of 20,000 pixels would stay in memory."""
    tifffile.imwrite("a.tif", np.zeros((100, 110), np.uint8), tile=(32, 32), photometric="minisblack")
    with open_image_rows(Path("a.tif"), ImageConfig(channels=1), min_pixels=5000) as rows:
        assert rows is not None
        thumbnail = Thumbnail(rows)
        pixels, mask = thumbnail.read_rows(0, 60), np.zeros((60, 110), np.uint8)
        thumbnail.note_mask(Band(top=0, logits=torch.zeros(2, 60, 110)), mask)
        gone = [weakref.ref(pixels), weakref.ref(mask)]
        del pixels, mask
        assert [reference() for reference in gone] == [None, None]


@pytest.mark.parametrize(("save", "tta", "what"), [("mask,polygons", False, "polygons"), ("mask", True, "--tta")])
def test_what_needs_the_whole_image_is_refused_of_a_large_one(
    tree, write_model_dir, monkeypatch: pytest.MonkeyPatch, save: str, tta: bool, what: str
) -> None:
    monkeypatch.setattr("pipeline.predict_image.LARGE_PIXELS", 5000)
    write_model_dir(Path("model"), INDEXED)
    write_large(Path("a.tif"))
    with pytest.raises(DataError) as caught:
        run([Path("a.tif")], save=save, tta=tta)
    assert str(caught.value).endswith(
        f"  a.tif: too large for {what}: a: 100x110 pixels, at most 5,000 are possible. "
        "Leave it out, or cut the image into parts."
    )


def test_a_large_file_that_is_damaged_leaves_nothing_half_done(
    tree, write_model_dir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.predict_image.LARGE_PIXELS", 5000)
    write_model_dir(Path("model"), INDEXED)
    write_large(Path("a.tif"))
    with tifffile.TiffFile("a.tif") as file:
        place, length = file.pages.first.dataoffsets[-1], file.pages.first.databytecounts[-1]
    data = bytearray(Path("a.tif").read_bytes())
    data[place : place + length] = bytes(length)
    Path("a.tif").write_bytes(data)
    with pytest.raises(DataError, match=r"\n  a.tif: image can't be read: a.tif: "):
        run([Path("a.tif")])
    assert not [path for path in OUT.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_many_images_are_predicted_by_several_processes_with_the_same_results(
    tree, write_model_dir, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model_dir(Path("model"), INDEXED)
    for number in range(60):
        put(Path(f"a/{number}.png"), (9 + number % 5, 6))
    Path("a/broken.png").write_bytes(b"no picture")
    for processes in (1, 2):
        monkeypatch.setenv("UNET_PROCESSES", str(processes))
        with pytest.raises(DataError, match=r"^1 of 61 images could not be predicted"):
            run([Path("a")], out=Path(f"out{processes}"))
    one, two = (
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*.png")}
        for out in (Path("out1"), Path("out2"))
    )
    assert len(one) == 120
    assert one == two
