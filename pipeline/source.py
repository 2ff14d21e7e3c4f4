"""Where a user's data lie and how they are read as samples: recipe section `ingest`, and what it finds, `Pair`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from unet_core.errors import RecipeError

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp"})


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Recipe section `ingest`. Images and masks are found by pattern, listed by a table, or by a COCO file."""

    source: str
    """The folder with the user's data, or a URL such as s3://bucket/folder."""
    ledger: str
    """The record of arrivals, written by `unet init` and `unet add`."""
    image_pattern: str = "images/{key}.*"
    """Which files are images: a path below the source with {fields}, * and **; docs/data.md has examples."""
    mask_pattern: str | None = None
    """Which files are masks; null: masks/{key}.*, and masks/{class}/{key}.* for multilabel."""
    key: str = "{key}"
    """A sample's name, from the fields of image_pattern: "{group}_{key}" where groups use the same names."""
    follow_links: bool = False
    """Whether symbolic links may lead out of the source."""
    coco: str | None = None
    """A COCO file of annotations, below the source; its images are taken instead of the patterns'."""
    coco_images: str = "images"
    """Folder, below the source, of the file names in the COCO file; "" is the source itself."""
    table: str | None = None
    """A table below the source: .csv, .tsv, .parquet, or words between spaces."""
    table_columns: Sequence[str] | None = None
    """Names of the table's columns; null: its first line has them."""
    key_column: str | None = None
    """Column with a sample's key; null: `key`, or the image's name without ending if image_column is set."""
    image_column: str | None = None
    """Column with images' paths below the source: the table lists the samples, and patterns are not used."""
    mask_column: str | None = None
    """Column with the mask's path, or the paths of several, divided by semicolons."""
    mask_columns: Mapping[str, str] | None = None
    """For multilabel: class -> column with the path of its mask."""
    split_column: str | None = None
    """Column with a declared split."""
    group_column: str | None = None
    """Column with what must stay together in one split: patient, slide, video."""
    stratum_column: str | None = None
    """Column with what each split should hold its share of: site, modality, stain."""
    order_column: str | None = None
    """Column with a whole number: the slice's place in its volume, the frame's in its video."""
    slice_columns: Sequence[str] = ()
    """Columns whose words are kept, to score each word's samples apart."""

    def __post_init__(self) -> None:
        if self.image_column is not None and (self.table is None or self.coco is not None):
            raise RecipeError(
                "ingest.image_column: a table lists the samples, but "
                + ("ingest.table is null. Name the table." if self.table is None else "so does ingest.coco. Keep one.")
            )
        masks = [self.mask_column is not None, self.mask_columns is not None]
        if any(masks) and self.image_column is None:
            raise RecipeError("ingest.mask_column: only a table that lists samples has it. Set ingest.image_column.")
        if self.image_column is not None and sum(masks) != 1:
            raise RecipeError(
                "ingest.image_column: the table must name the masks too. Set ingest.mask_column, "
                "or for multilabel ingest.mask_columns (class: column), not both."
            )
        if self.table is None:
            for name in ("split_column", "group_column", "stratum_column", "order_column", "slice_columns"):
                if getattr(self, name):
                    raise RecipeError(f"ingest.{name}: there is no table. Set ingest.table, or remove the line.")

    @property
    def about_columns(self) -> tuple[str, ...]:
        """Columns in which no cell may be empty."""
        columns = (self.split_column, self.group_column, self.stratum_column, self.order_column)
        return tuple(column for column in columns if column is not None)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image and its masks, as references: paths below the source, or FILE.json#ID for COCO annotations."""

    key: str
    image: str
    masks: tuple[str, ...]
    group: str | None = None
    """What the image's path tells, as are split and slices."""
    split: str | None = None
    slices: Mapping[str, str] = field(default_factory=dict)


def and_more(names: Sequence[str]) -> str:
    """How many there are beside the first, for a message that names that."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
