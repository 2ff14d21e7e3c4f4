"""`unet init`: look at a folder, say what lies there, write a recipe for it, record the first batch."""

import csv
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.arrivals import add
from pipeline.command import say
from pipeline.params import RECIPE
from pipeline.source import list_pictures
from unet_core.errors import DataError, RecipeError
from unet_core.samples import read_mask_values

RECIPES = Path("recipes")
#: The recipe that the repository comes with; replacing it loses nothing.
SHIPPED = RECIPES / "shapes.yaml"
#: Files that are opened to learn what the masks mean.
NUM_LOOKED_AT = 200
#: Names that need no quotes in YAML, and words that mean something there.
PLAIN = re.compile(r"/?[A-Za-z_][\w./-]*")
YAML_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table in the folder that declares splits."""

    name: str
    columns: tuple[str, ...] | None
    """Names of its columns where its first line has none."""
    key_column: str
    words: tuple[str, ...]
    """What stands in its split column."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What lies in a folder."""

    num_images: int
    modes: Mapping[str, int]
    sizes: Mapping[tuple[int, int], int]
    kind: str
    classes: Mapping[str, int]
    ignore: int | None
    background: str | None
    table: Table | None


def init(*, source: Path, recipe: str | None, force: bool) -> None:
    """Write params.yaml for a folder, or from a recipe in recipes/, and record what lies in the folder."""
    if not source.is_dir():
        raise DataError(f"no such folder: {source}. Give the folder that holds images/ and masks/.")
    replaceable = not RECIPE.exists() or (SHIPPED.exists() and RECIPE.read_bytes() == SHIPPED.read_bytes())
    if not replaceable and not force:
        raise RecipeError(f"{RECIPE} is your own. Replace it with --force (the old one stays as {RECIPE}.old).")
    if recipe is not None:
        text = _from_recipe(source, recipe)
    else:
        look = look_at(source)
        _tell(source, look)
        text = write_recipe(source, look)
    before = RECIPE.read_bytes() if RECIPE.exists() else None
    RECIPE.write_text(text, encoding="utf-8")
    try:
        add()
    except BaseException:
        # As if nothing had been asked: the next attempt meets no recipe that nobody has read.
        if before is None:
            RECIPE.unlink()
        else:
            RECIPE.write_bytes(before)
        raise
    if before is not None and not replaceable:
        RECIPE.with_name(f"{RECIPE.name}.old").write_bytes(before)
    say(f"recipe written: {RECIPE}; read it through, above all `masks` and `split`")
    say("next: dvc repro")


def _from_recipe(source: Path, name: str) -> str:
    path = RECIPES / f"{name}.yaml"
    if not path.exists():
        known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
        raise RecipeError(f"no such recipe: {name}. Choose from {known}.")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(
        f"  source: {json.dumps(str(source), ensure_ascii=False)}\n" if line.startswith("  source:") else line
        for line in lines
    )


def look_at(source: Path) -> Look:
    """Find out number, sizes and modes of the images, and what the masks mean."""
    images = list_pictures(source / "images")
    if not images:
        raise DataError(f"no images: {source / 'images'} has no picture files. Put images in images/, masks in masks/.")
    modes: Counter[str] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    for path in images.values():
        try:
            with Image.open(path) as picture:
                modes[picture.mode] += 1
                sizes[picture.size] += 1
        except OSError as error:
            raise DataError(f"image can't be read: {path}: {error}. Export it again, or remove the pair.") from error
    folders = sorted(path for path in (source / "masks").glob("*") if path.is_dir() and list_pictures(path))
    kind, classes, ignore, background = (
        _look_at_planes(folders) if folders else _look_at_masks(source / "masks", list_pictures(source / "masks"))
    )
    return Look(
        num_images=len(images),
        modes=modes,
        sizes=sizes,
        kind=kind,
        classes=classes,
        ignore=ignore,
        background=background,
        table=_look_for_table(source, set(images)),
    )


def _look_at_planes(folders: Sequence[Path]) -> tuple[str, dict[str, int], None, None]:
    classes = {}
    for folder in folders:
        values = [value for value in _mask_values(list_pictures(folder)) if value]
        if len(values) > 1:
            raise DataError(
                f"not a binary mask: {folder}: values {values[:8]}. A folder of masks per class holds 0 and one value."
            )
        classes[folder.name] = values[0] if values else 255
    return "multilabel", classes, None, None


def _look_at_masks(folder: Path, masks: Mapping[str, Path]) -> tuple[str, dict[str, int], int | None, str | None]:
    if not masks:
        raise DataError(f"no masks: {folder} has no picture files. Put one mask per image there, of the same name.")
    values = _mask_values(masks)
    if len(values) > 32:
        raise DataError(
            f"masks with {len(values)} values: {folder}: {values[:6]} ... {values[-1]}. If they are smoothed "
            "binary masks, threshold them to 0 and 255; if they number objects, draw them all with 255."
        )
    if len(values) == 1:
        raise DataError(f"masks with one value: {folder}: all pixels are {values[0]}. There is nothing to learn.")
    if len(values) == 2 and values[0] == 0:
        return "multiclass", {"background": 0, "foreground": values[1]}, None, "background"
    # 0, 1, 2 ... and 255 is how most tools mark pixels without a label; 0, 128, 255 are three classes.
    ignore = 255 if len(values) > 2 and values == [*range(len(values) - 1), 255] else None
    classes = {f"class_{value}": value for value in values if value != ignore}
    return "multiclass", classes, ignore, None


def _mask_values(masks: Mapping[str, Path]) -> list[int]:
    paths = list(masks.values())
    shown = paths[:: max(1, len(paths) // NUM_LOOKED_AT)]
    return sorted({int(value) for path in shown for value in np.unique(read_mask_values(path))})


def _look_for_table(source: Path, keys: set[str]) -> Table | None:
    """A table that declares splits: lines such as `train 007`, or a CSV with a column `split` and one of all keys."""
    for path in sorted([*source.glob("*.txt"), *source.glob("*.csv")]):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if path.suffix == ".csv":
            header, *rows = list(csv.reader(lines)) or [[]]
        else:
            header, rows = ["split", "key"], [line.split() for line in lines if line.strip()]
        columns = {name: {row[number] for row in rows if number < len(row)} for number, name in enumerate(header)}
        words = columns.get("split", set())
        key_columns = [name for name, found in columns.items() if found >= keys]
        if key_columns and words and words <= set(SPLIT_WORDS):
            return Table(
                name=path.name,
                columns=None if path.suffix == ".csv" else ("split", "key"),
                key_column=key_columns[0],
                words=tuple(sorted(words)),
            )
    return None


def _tell(source: Path, look: Look) -> None:
    sizes = ", ".join(f"{width}x{height} ({count})" for (width, height), count in Counter(look.sizes).most_common(4))
    more = f" and {len(look.sizes) - 4} other sizes" if len(look.sizes) > 4 else ""
    say(f"{source}: {look.num_images} images")
    say(f"  sizes (width x height): {sizes}{more}")
    say(f"  modes: {', '.join(f'{mode} ({count})' for mode, count in look.modes.items())}")
    say(f"  masks: {look.kind}, {', '.join(f'{name} = {value}' for name, value in look.classes.items())}")
    if look.ignore is not None:
        say(f"  value {look.ignore} looks like an ignore value: neither trained on nor scored")
    if look.table is not None:
        say(f"  splits declared in {look.table.name}: {', '.join(look.table.words)}")


def write_recipe(source: Path, look: Look) -> str:
    """The text of a recipe with defaults that fit what was seen."""
    channels = 1 if set(look.modes) <= {"L", "1"} else 3
    smallest = min(min(size) for size in look.sizes)
    crop = 256 if smallest >= 512 else 128
    num_train = max(1, int(look.num_images * 0.7))
    epochs = max(10, min(500, 16_000 // num_train))
    loss = "cross_entropy" if look.kind == "multiclass" else "bce"
    classes = "\n".join(f"    {_text(name)}: {value}" for name, value in look.classes.items())
    table, declared = _table_lines(look.table) if look.table is not None else ("", "")
    return TEMPLATE.format(
        source=_text(str(source)),
        ledger=_text(f"arrivals/{source.resolve().name}.jsonl"),
        table=table,
        kind=look.kind,
        classes=classes,
        ignore="null" if look.ignore is None else look.ignore,
        background=look.background or "null",
        channels=channels,
        declared=declared,
        epochs=epochs,
        loss=loss,
        every=max(1, epochs // 20),
        crop=crop,
    )


def _text(value: object) -> str:
    """A value as YAML reads it back, whatever it is called: JSON is YAML. Plain words stay plain."""
    plain = isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in YAML_WORDS
    return str(value) if plain else json.dumps(value, ensure_ascii=False)


def _table_lines(table: Table) -> tuple[str, str]:
    """The recipe's lines for a table, and what its words mean. Without test words, the val images become the test:
    validation images are then taken from the training images.
    """
    lines = f"  table: {_text(table.name)}\n"
    if table.columns is not None:
        lines += f"  table_columns: {_text(list(table.columns))}\n"
    lines += f"  key_column: {_text(table.key_column)}\n  split_column: split\n"
    meant = {word: SPLIT_WORDS[word] for word in table.words}
    if "test" not in meant.values():
        meant = {word: "test" if split == "val" else split for word, split in meant.items()}
    return lines, ", ".join(f"{word}: {split}" for word, split in meant.items())


TEMPLATE = """\
# Written by `unet init`. Everything that may change the result; where and how fast is set by the environment.
ingest:
  source: {source}
  ledger: {ledger}
{table}masks:
  kind: {kind}              # multiclass: one index image; multilabel: one binary image per class
  classes:                      # name: pixel value; rename as you like
{classes}
  ignore: {ignore}
  background: {background}        # a class that is trained but not scored
validate:
  channels: {channels}                   # 1 gray, 3 RGB
  max_rejected_fraction: 0.0
split:
  seed: 0
  val_fraction: 0.15
  test_fraction: 0.15
  declared: {{{declared}}}                  # word in the split column: train, val or test
shard:
  target_mb: 64.0
  tile_px: null                 # larger training images are cut into tiles of at most this side
  codec: raw                    # fastest to read; png makes smaller files
model:
  width: 16
  depth: 4
  norm: group                   # batch is faster, and does well where all images look alike
  input_statistics: train
augment:
  crop_px: {crop}
  transforms:                   # albumentations; remove what does not suit your images
    - {{name: D4, p: 1.0}}
    - {{name: RandomBrightnessContrast, p: 0.5}}
train:
  seed: 0
  epochs: {epochs}
  lanes: 4                      # the largest number of workers
  samples_per_lane: 2
  block_shards: 4
  threads_per_worker: 1
  precision: float32            # bfloat16 where the processor has it
  channels_last: true
  optimizer: adamw
  learning_rate: 0.003
  weight_decay: 0.01
  schedule: cosine
  warmup_steps: 30
  decay_epochs: null
  loss: {{{loss}: 0.5, dice: 0.5}}
  gradient_clip: null
  validate_every_epochs: {every}
  checkpoint_every_steps: null
  select_by: dice
register:
  model: unet
evaluate:
  score: dice
  bootstrap_draws: 2000
  seed: 0
promote:
  min_score: 0.5
  confidence: 0.95
  min_images: 20
  bootstrap_draws: 10000
  seed: 0
"""
