"""The worst test images and some in the middle, as pictures: image, true mask, prediction, and where they differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.json_file import write_json
from pipeline.pictures import as_rgb, class_colours, fit, grid, paint_mask, write_picture
from pipeline.scoring import is_instances, predict_sample
from unet_core.model import ModelSpec, Network
from unet_core.outputs import separate_objects
from unet_core.reader import ShardReader
from unet_core.samples import IGNORE_INDEX, Array, ClassMap, class_indices

#: Pictures of each kind.
NUM_CASES = 4
#: Where a class is missed, invented, or one was taken for another: no class has these colours, and people who see few
#: colours can tell them apart.
MISSED, INVENTED, TAKEN_FOR_OTHER = (255, 64, 160), (0, 220, 255), (255, 255, 0)


def write_cases(
    directory: Path, per_image: Mapping[str, float], reader: ShardReader, network: Network, spec: ModelSpec
) -> list[Path]:
    """Pictures of the worst and of median images by key and score, and a list of them as cases.json."""
    numbers = {key: number for number, key in enumerate(reader.keys())}
    directory.mkdir(parents=True, exist_ok=True)
    listed, paths = [], []
    for place, (kind, key) in enumerate(choose_cases(per_image)):
        sample = reader.read(numbers[key])
        predicted = predict_sample(network, spec, sample.image)
        shown = separate_objects(predicted > 0).astype(np.uint16) if is_instances(spec.class_map) else predicted
        tiles = [
            as_rgb(sample.image),
            paint_mask(sample.mask, spec.class_map),
            paint_mask(shown, spec.class_map),
            paint_errors(sample.image, class_indices(sample.mask, spec.class_map), predicted, spec.class_map),
        ]
        paths.append(directory / f"{place:02d}_{kind}.png")
        write_picture(paths[-1], grid([[fit(tile) for tile in tiles]]))
        listed.append({"kind": kind, "key": key, "score": per_image[key], "picture": paths[-1].name})
    write_json(directory / "cases.json", {"colours": _colours(spec.class_map), "cases": listed})
    return paths


def choose_cases(per_image: Mapping[str, float]) -> list[tuple[str, str]]:
    """Kind and key: the worst, then those around the median that are not among the worst."""
    ranked = sorted(per_image, key=lambda key: (per_image[key], key))
    worst, rest = ranked[:NUM_CASES], ranked[NUM_CASES:]
    start = max(0, (len(ranked) - NUM_CASES) // 2 - len(worst))
    return [("worst", key) for key in worst] + [("median", key) for key in rest[start : start + NUM_CASES]]


def paint_errors(image: Array, mask: Array, predicted: Array, class_map: ClassMap) -> Array:
    """The image, darkened, with the pixels that are wrong: missed, invented, or of another class than true."""
    missed, invented, other = find_errors(mask, predicted, class_map)
    picture = as_rgb(image) // 2
    for wrong, colour in ((other, TAKEN_FOR_OTHER), (missed, MISSED), (invented, INVENTED)):
        picture[wrong] = colour
    return picture


def find_errors(mask: Array, predicted: Array, class_map: ClassMap) -> tuple[Array, Array, Array]:
    """Where something is missed, invented, or taken for another class; (H, W) bool each."""
    if class_map.kind == "multilabel":
        less, more = np.asarray((mask > predicted).any(axis=-1)), np.asarray((predicted > mask).any(axis=-1))
        return less & ~more, more & ~less, less & more
    background = class_map.names.index(class_map.ground) if class_map.ground is not None else None
    wrong: Array = np.not_equal(mask, predicted) & np.not_equal(mask, IGNORE_INDEX)
    if background is None:
        return np.zeros_like(wrong), np.zeros_like(wrong), wrong
    missed = np.where(predicted == background, wrong, False)
    invented = np.where(mask == background, wrong, False)
    return missed, invented, wrong & ~missed & ~invented


def _colours(class_map: ClassMap) -> dict[str, Any]:
    shades: Sequence[str] = ["#" + bytes(colour).hex() for colour in class_colours(class_map)]
    return dict(zip(class_map.names, shades, strict=True))
