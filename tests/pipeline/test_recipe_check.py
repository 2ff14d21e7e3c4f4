import pytest

from pipeline.params import OPTIONAL, SECTIONS
from pipeline.recipe_check import CLASSES, check_recipe
from unet_core.errors import RecipeError


def test_every_section_is_read() -> None:
    assert set(CLASSES) == {*SECTIONS, *OPTIONAL}


@pytest.mark.parametrize("section", [*SECTIONS, *OPTIONAL])
def test_a_typo_is_found_in_each_section(section: str, tree) -> None:
    tree.write_recipe(**{section: {"typo": 1}} if section in SECTIONS else {})
    if section in OPTIONAL:
        with (tree.root / "params.yaml").open("a") as stream:
            stream.write(f"{section}: {{typo: 1}}\n")
    with pytest.raises(RecipeError, match=rf"^unknown key: params\.yaml: {section}: typo\. "):
        check_recipe()
