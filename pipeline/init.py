"""`unet init`: look at a folder, say what lies there, write a recipe for it, record the first batch."""

import json
import re
from collections import Counter
from pathlib import Path, PurePosixPath

from pipeline.arrivals import add
from pipeline.command import say
from pipeline.layouts import SPLIT_WORDS
from pipeline.ledger import present, read_ledger
from pipeline.look import Look, Table, look_at
from pipeline.params import RECIPE
from pipeline.references import hash_image, read_reference
from pipeline.storage import is_url
from unet_core.errors import DataError, RecipeError

RECIPES = Path("recipes")
#: The recipe that the repository comes with; replacing it loses nothing.
SHIPPED = RECIPES / "shapes.yaml"
LEDGERS = Path("arrivals")
#: Recorded samples of a ledger that are looked for in a source, to learn whether it is that ledger's.
NUM_COMPARED = 20
#: Names that need no quotes in YAML, and words that mean something there.
PLAIN = re.compile(r"/?[A-Za-z_][\w./-]*")
YAML_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def init(*, source: str, recipe: str | None, force: bool) -> None:
    """Write params.yaml for a folder or URL, or from a recipe in recipes/, and record what lies there."""
    # DVC knows local files by their paths only.
    source = source.removeprefix("file://")
    if not is_url(source) and not Path(source).is_dir():
        raise DataError(f"no such folder: {source}. Give the folder that holds images and masks.")
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
    old = RECIPE.with_name(f"{RECIPE.name}.old")
    if before is not None and not replaceable:
        # Before anything else: recording may take an hour, and its process may be killed.
        old.write_bytes(before)
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
    say(f"recipe written: {RECIPE}; read it through, above all `masks` and `split`")
    say("next: dvc repro")


def choose_ledger(source: str) -> str:
    """A ledger named as the source is. Another folder of the same name has another ledger, NAME-2."""
    name = PurePosixPath(source.rstrip("/")).name if is_url(source) else Path(source).resolve().name
    number = 1
    while True:
        ledger = LEDGERS / f"{name}{'' if number == 1 else f'-{number}'}.jsonl"
        if not ledger.exists() or _is_ledger_of(ledger, source):
            return ledger.as_posix()
        number += 1


def _is_ledger_of(ledger: Path, source: str) -> bool:
    """Whether a ledger is empty, or a sample that it records lies in the source, byte for byte."""
    recorded = list(present(read_ledger(ledger)).values())
    for arrival in recorded[:NUM_COMPARED]:
        try:
            if hash_image(read_reference(source, arrival.image)) == arrival.image_sha256:
                return True
        except DataError:
            continue
    return not recorded


def _from_recipe(source: str, name: str) -> str:
    path = RECIPES / f"{name}.yaml"
    if not path.exists():
        known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
        raise RecipeError(f"no such recipe: {name}. Choose from {known}.")
    ours = {"  source:": source, "  ledger:": choose_ledger(source)}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(
        next((f"{start} {_text(value)}\n" for start, value in ours.items() if line.startswith(start)), line)
        for line in lines
    )


def _tell(source: str, look: Look) -> None:
    sizes = ", ".join(f"{width}x{height} ({count})" for (width, height), count in Counter(look.sizes).most_common(4))
    more = f" and {len(look.sizes) - 4} other sizes" if len(look.sizes) > 4 else ""
    meaning = look.meaning
    say(f"{source}: {look.num_images} images, {look.layout.image_pattern}")
    say(f"  sizes (width x height): {sizes}{more}")
    say(f"  modes: {', '.join(f'{mode} ({count})' for mode, count in look.modes.items())}")
    say(f"  masks: {look.layout.mask_pattern}")
    say(f"  {meaning.kind}: {', '.join(f'{name} = {value}' for name, value in meaning.classes.items())}")
    if meaning.ignore is not None:
        say(f"  value {meaning.ignore} looks like an ignore value: neither trained on nor scored")
    if look.split_words:
        say(f"  splits declared by folders: {', '.join(look.split_words)}")
    if look.table is not None:
        say(f"  splits declared in {look.table.name}: {', '.join(look.table.words)}")


def write_recipe(source: str, look: Look) -> str:
    """The text of a recipe with defaults that fit what was seen."""
    meaning = look.meaning
    smallest = min(min(size) for size in look.sizes)
    crop = 256 if smallest >= 512 else 128
    num_train = max(1, int(look.num_images * 0.7))
    epochs = max(10, min(500, 16_000 // num_train))
    loss = "bce" if meaning.kind == "multilabel" else "cross_entropy"
    classes = "\n".join(f"    {_text(name)}: {value}" for name, value in meaning.classes.items())
    table = _table_lines(look.table) if look.table is not None else ""
    return TEMPLATE.format(
        source=_text(source),
        ledger=_text(choose_ledger(source)),
        image_pattern=_text(look.layout.image_pattern),
        mask_pattern=_text(look.layout.mask_pattern),
        key="" if look.layout.key == "{key}" else f"  key: {_text(look.layout.key)}\n",
        table=table,
        kind=meaning.kind,
        classes=classes,
        ignore="null" if meaning.ignore is None else meaning.ignore,
        background=meaning.background or "null",
        channels=look.channels,
        depth=PERCENTILES if look.is_deep else "",
        declared=_declared(look.table.words if look.table is not None else look.split_words),
        epochs=epochs,
        loss=loss,
        every=max(1, epochs // 20),
        crop=crop,
    )


def _text(value: object) -> str:
    """A value as YAML reads it back, whatever it is called: JSON is YAML. Plain words stay plain."""
    plain = isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in YAML_WORDS
    return str(value) if plain else json.dumps(value, ensure_ascii=False)


def _table_lines(table: Table) -> str:
    lines = f"  table: {_text(table.name)}\n"
    if table.columns is not None:
        lines += f"  table_columns: {_text(list(table.columns))}\n"
    return lines + f"  key_column: {_text(table.key_column)}\n  split_column: split\n"


def _declared(words: tuple[str, ...]) -> str:
    """What the words for splits mean. Without test words, the val images become the test: validation images are then
    taken from the training images.
    """
    meant = {word: SPLIT_WORDS[word.lower()] for word in words}
    if "test" not in meant.values():
        meant = {word: "test" if split == "val" else split for word, split in meant.items()}
    return ", ".join(f"{_text(word)}: {split}" for word, split in meant.items())


#: For images of more than 8 bits a channel.
PERCENTILES = """\
  percentiles: [1, 99]          # black and white of each image; value_range: [low, high] is one for all
"""
TEMPLATE = """\
# Written by `unet init`. Everything that may change the result; where and how fast is set by the environment.
ingest:
  source: {source}
  ledger: {ledger}
  image_pattern: {image_pattern}
  mask_pattern: {mask_pattern}
{key}{table}images:
  channels: {channels}                   # 1 gray, 3 RGB
{depth}masks:
  kind: {kind}              # multiclass: one index image; multilabel: one binary image per class; instances: ids
  classes:                      # name: pixel value or colour; rename as you like
{classes}
  ignore: {ignore}
  background: {background}        # a class that is trained but not scored
validate:
  max_rejected_fraction: 0.0
split:
  seed: 0
  val_fraction: 0.15
  test_fraction: 0.15
  declared: {{{declared}}}                  # word in the split column: train, val or test
  leaks: error                  # samples of two splits that belong together; report: list them and go on
shard:
  target_mb: 64.0
  tile_px: null                 # larger training images are cut into tiles of at most this side
  codec: raw                    # fastest to read; png makes smaller files
model:
  width: 16
  depth: 4
  norm: group                   # batch is faster, and does well where all images look alike
  stem_stride: 1                # 2 looks twice as far: for large objects, known by their surroundings
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
  exact: true
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
  class_weights: none           # inverse or median of a class's pixels, or a list in the order of masks.classes
  gradient_clip: null
  ema_decay: 0.99               # validate and keep averaged weights; null: the last ones
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
  min_groups: 20                # of test images; an image without a group is its own
  max_class_drop: 0.05          # no class and no slice may surely fall by more; docs/promotion.md has all limits
  max_slice_drop: 0.05
  bootstrap_draws: 10000
  seed: 0
"""
