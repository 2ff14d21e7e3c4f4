import re
from pathlib import Path

import pytest
import yaml

from pipeline.patterns import recipe_patterns
from pipeline.source import IngestConfig
from unet_core.errors import RecipeError
from unet_core.samples import ClassMap

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_of_the_page_is_a_recipe_that_can_be_read(example: str) -> None:
    recipe = yaml.safe_load(example)
    masks = recipe.get("masks", {"kind": "multiclass", "classes": {"background": 0, "object": 255}})
    recipe_patterns(IngestConfig(**recipe["ingest"]), ClassMap(**masks))


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (
            {"image_column": "image", "mask_column": "mask"},
            "ingest.image_column: a table lists the samples, but ingest.table",
        ),
        (
            {"image_column": "image", "mask_column": "mask", "table": "t.csv", "coco": "c.json"},
            "ingest.image_column: a table lists the samples, but so does ingest.coco. Keep one.",
        ),
        ({"table": "t.csv", "mask_column": "mask"}, "ingest.mask_column: only a table that lists samples has it."),
        ({"table": "t.csv", "image_column": "image"}, "ingest.image_column: the table must name the masks too."),
        (
            {"table": "t.csv", "image_column": "image", "mask_column": "m", "mask_columns": {"ring": "r"}},
            "ingest.image_column: the table must name the masks too.",
        ),
        ({"group_column": "patient"}, "ingest.group_column: there is no table. Set ingest.table, or remove the line."),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(about: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        IngestConfig(source="raw", ledger="raw.jsonl", **about)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)
