from pathlib import Path

import fsspec
import pytest

from pipeline.image_files import find_images, name_results
from unet_core.errors import DataError

OUT = Path("out")


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")


@pytest.fixture
def url() -> str:
    """A place in memory with two images and a text."""
    system = fsspec.filesystem("memory")
    for name in ("a.png", "deep/b.tif", "deep/notes.txt"):
        system.makedirs("/pictures/deep", exist_ok=True)
        system.pipe_file(f"/pictures/{name}", b"x")
    return "memory://pictures"


def test_files_and_everything_below_folders_are_found_once(tree) -> None:
    touch("a/1.png", "a/deep/2.JPG", "b.tif", "a/notes.txt", "a/.hidden.png")
    found = find_images(["b.tif", "a", "a/1.png"], outside=OUT)
    assert found == ["b.tif", "a/1.png", "a/deep/2.JPG"]


def test_patterns_are_found_and_files_that_are_named_like_one(tree) -> None:
    touch("a/1.png", "a/2.png", "a/b/3.png", "a/[x].png", "a/4.txt")
    assert find_images(["a/?.*"], outside=OUT) == ["a/1.png", "a/2.png"]
    assert find_images(["a/**/*.png"], outside=OUT) == ["a/1.png", "a/2.png", "a/[x].png", "a/b/3.png"]
    assert find_images(["a/[x].png"], outside=OUT) == ["a/[x].png"]


def test_urls_name_files_folders_and_patterns(tree, url: str) -> None:
    assert find_images([f"{url}/a.png"], outside=OUT) == [f"{url}/a.png"]
    a, b = "memory:///pictures/a.png", "memory:///pictures/deep/b.tif"
    assert find_images([url], outside=OUT) == [a, b]
    assert find_images([f"{url}/**/*.tif"], outside=OUT) == [b]


@pytest.mark.parametrize("place", ["none.png", "empty", "x/*.png", "memory://nothing"])
def test_a_place_without_images_is_named(tree, place: str) -> None:
    Path("empty").mkdir()
    touch("a.png")
    with pytest.raises(DataError) as caught:
        find_images(["a.png", place], outside=OUT)
    assert str(caught.value).startswith(f"no images: {place}. Give image files, folders or patterns with ['.bmp', ")


def test_results_are_no_images(tree) -> None:
    touch("out/masks/a.png", "b.png")
    assert find_images(["."], outside=OUT) == ["b.png"]
    with pytest.raises(DataError) as caught:
        find_images(["out"], outside=OUT)
    assert str(caught.value) == "no images: out: what is there are results in out. Give image files or folders."


def test_results_have_the_images_names_and_two_of_one_name_are_refused() -> None:
    assert name_results(["a/x.png", "s3://bucket/y.z.tif"]) == {"a/x.png": "x", "s3://bucket/y.z.tif": "y.z"}
    with pytest.raises(DataError) as caught:
        name_results(["a/1.png", "a/1.tif"])
    assert str(caught.value) == "two images of one name: a/1.png and a/1.tif. Predict them into two folders."


def test_images_of_one_name_in_different_folders_are_named_by_their_paths(tree) -> None:
    found = name_results(["scans/a/1.png", "scans/b/deep/1.tif", "scans/2.png"])
    assert found == {"scans/a/1.png": "a/1", "scans/b/deep/1.tif": "b/deep/1", "scans/2.png": "2"}
    urls = ["s3://bucket/x/1.png", "s3://bucket/y/1.png"]
    assert list(name_results(urls).values()) == ["x/1", "y/1"]
    # Nothing leads out of the folder of results.
    for names in (["../other/1.png", "1.png"], ["/far/1.png", "1.png"], ["s3://bucket/../1.png", "1.png"]):
        assert not any(".." in name or name.startswith("/") for name in name_results(names).values())
