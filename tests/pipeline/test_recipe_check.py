from pathlib import Path

import pytest

from pipeline.params import OPTIONAL, SECTIONS
from pipeline.recipe_check import CLASSES, check_recipe
from unet_core.errors import RecipeError

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_every_section_is_read() -> None:
    assert set(CLASSES) == {*SECTIONS, *OPTIONAL}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_projects_own_recipes_are_in_order(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(recipe.read_text())
    check_recipe()


@pytest.mark.parametrize("section", SECTIONS)
def test_a_typo_is_found_in_each_section(section: str, tree) -> None:
    tree.write_recipe(**{section: {"typo": 1}})
    with pytest.raises(RecipeError, match=rf"^unknown key: params\.yaml: {section}: typo\. "):
        check_recipe()
