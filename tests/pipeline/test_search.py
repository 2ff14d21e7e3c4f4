"""A real search with Ray Tune, MLflow and a tiny network."""

import json
from pathlib import Path

import pytest
import yaml

from pipeline.params import load_section, read_sections
from pipeline.space import SearchConfig, draw_trials
from unet_core.errors import RecipeError, TrainingError

SHARDS, OUT = Path("data/shards"), Path("reports/search.yaml")
SMALL = {"width": 8, "depth": 1}
#: A rate that learns, and one that breaks the network.
SPACE = {"train.learning_rate": [0.02, 1e30]}


def add_search(tree, **changes) -> None:
    """Give the recipe a section `search`."""
    recipe = yaml.safe_load((tree.root / "params.yaml").read_text())
    recipe["search"] = {"space": SPACE, "trials": 3, "grace_epochs": 1, "seed": 0, **changes}
    (tree.root / "params.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


@pytest.fixture
def searched(sharded):
    """A recipe whose own rate learns next to nothing, and a search for a better one."""
    train = {"epochs": 3, "validate_every_epochs": 1, "learning_rate": 1e-6, "warmup_steps": 0, "lanes": 2}
    sharded.write_recipe(model=SMALL | {"norm": "none"}, train=train)
    # No trial ends early: which do would depend on who is first.
    add_search(sharded, grace_epochs=3)
    return sharded


def test_a_recipe_without_a_search_is_refused(sharded) -> None:
    from pipeline.search import search

    with pytest.raises(RecipeError, match=r"^missing section: params.yaml: search\. Copy it from a recipe"):
        search(shards=SHARDS, out=OUT, apply=False)


def test_a_trial_that_cannot_be_trained_is_refused_before_any_is(sharded) -> None:
    from pipeline.search import search

    sharded.write_recipe(model={"norm": "group"})
    add_search(sharded, space={"model.width": [12]})
    with pytest.raises(RecipeError, match=r"^trial 1 can't be trained: model: group norm makes 8 groups, width 12 "):
        search(shards=SHARDS, out=OUT, apply=False)
    assert not OUT.exists()
    assert not Path("mlflow.db").exists()


def test_presets_that_the_recipes_own_keys_make_equal_are_refused(sharded) -> None:
    from pipeline.search import search

    sharded.write_recipe(model={"width": 8, "norm": "group"})
    add_search(sharded, space={"model.preset": ["large", "small", "base"]})
    with pytest.raises(RecipeError) as caught:
        search(shards=SHARDS, out=OUT, apply=False)
    assert str(caught.value) == (
        "search.space.model.preset: small and base are the same network here: the recipe's own keys in model go before a "
        "preset's. Remove them, or search them instead."
    )


def test_grace_that_is_longer_than_training_is_refused(sharded) -> None:
    from pipeline.search import search

    sharded.write_recipe(train={"epochs": 3})
    add_search(sharded, grace_epochs=4)
    with pytest.raises(RecipeError, match=r"^search\.grace_epochs: 4: more than train\.epochs, 3: "):
        search(shards=SHARDS, out=OUT, apply=False)


def test_what_the_recipe_has_already_is_no_other_trial(sharded, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.search import _draw_different

    # A knob that the recipe does not write, with its default among the values, and one that it writes in other digits.
    sharded.write_recipe(train={"learning_rate": 0.01})
    space = {"model.stem_stride": [1, 2], "train.learning_rate": [1e-2]}
    add_search(sharded, space=space, trials=5)
    config = load_section("search", SearchConfig)
    drawn = _draw_different(Path("params.yaml").read_text(), config)
    assert drawn == [{}, {"model.stem_stride": 2, "train.learning_rate": 0.01}]
    assert capsys.readouterr().out == "2 trials, not 5: search.space has no more that differ from each other\n"
    add_search(sharded, space={"model.stem_stride": [1]})
    with pytest.raises(RecipeError) as caught:
        _draw_different(Path("params.yaml").read_text(), load_section("search", SearchConfig))
    assert str(caught.value) == "search.space: no trial would differ from the recipe as it is. Add other values."


@pytest.mark.slow
def test_the_best_trial_becomes_a_recipe_and_each_is_a_run(searched, client, capsys) -> None:
    from pipeline.search import search
    from pipeline.search_runs import PARENT_TAG, SEARCH_TAG

    search(shards=SHARDS, out=OUT, apply=False)
    before, after = read_sections(), yaml.safe_load(OUT.read_text())
    assert after == {**before, "train": {**before["train"], "learning_rate": 0.02}}
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("* trial ")
    assert said[0].endswith(": train.learning_rate=0.02")
    assert "the recipe as it is" in said[1]
    assert "no score: train.learning_rate=1e+30; the " in said[2]
    assert said[3] == "the best recipe: reports/search.yaml. Next: cp reports/search.yaml params.yaml && dvc repro"
    runs = client.search_runs([client.experiment_id()])
    (parent,) = [run for run in runs if SEARCH_TAG in run.data.tags]
    children = [run for run in runs if run.data.tags.get(PARENT_TAG) == parent.info.run_id]
    assert {run.info.run_name: run.info.status for run in children} == {
        "trial 0": "FINISHED",
        **{f"trial {n}": "FAILED" if trial["train.learning_rate"] > 1 else "FINISHED" for n, trial in enumerate(trials()) if n},
    }  # fmt: skip
    assert parent.data.tags["winner.train.learning_rate"] == "0.02"
    assert not list(Path(".unet/search").iterdir())


def test_a_trial_whose_validations_gave_no_score_says_so(searched, client, capsys) -> None:
    from pipeline.search import Record, _tell
    from pipeline.search_runs import SearchRuns
    from unet_core.train_config import TrainConfig

    searched.write_recipe(train={"select_by": "dice"})
    changes = [{}, {"train.learning_rate": 0.5}]
    record = Record(Path("trials.jsonl"), changes, SearchRuns(client, "abc"), load_section("train", TrainConfig))
    for trial, dice in ((0, 0.25), (1, None)):
        record.on_report(trial, {"epoch": 2, "loss": 1.0, "dice": dice, "class_dice": {"cell": dice}})
        record.on_end(trial)
    _tell(record, record.best())
    assert capsys.readouterr().out.splitlines() == [
        "* trial 0: val_dice 0.2500 at epoch 2, ended after 2: the recipe as it is",
        "  trial 1: no score, ended after 2: train.learning_rate=0.5",
    ]


def trials():
    return draw_trials(load_section("search", SearchConfig))


@pytest.mark.slow
@pytest.mark.chaos
def test_a_search_goes_on_where_it_was_killed_and_a_trial_has_the_bits_of_a_training(
    searched, client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline import search as module
    from pipeline.worker import read_recipe
    from unet_core.index import read_index
    from unet_core.loader import LaneLoader
    from unet_core.reader import ShardReader
    from unet_core.reduction import LaneTree
    from unet_core.trainer import Trainer

    class KilledError(Exception):
        pass

    def kill(_: object) -> None:
        raise KilledError

    # All trials are done; then the notes of all but the first are lost.
    with monkeypatch.context() as patch:
        patch.setattr(module.Record, "best", kill)
        with pytest.raises(KilledError):
            module.search(shards=SHARDS, out=OUT, apply=False)
    (journal,) = Path(".unet/search").glob("*/trials.jsonl")
    lines = journal.read_text().splitlines()
    told = [json.loads(line) for line in lines]
    journal.write_text("".join(f"{line}\n" for line, entry in zip(lines, told, strict=True) if entry["trial"] == 0))
    # The recipe's own training, here in this process.
    index = read_index(SHARDS)
    spec, config, augment = read_recipe(index)
    trainer = Trainer(spec, config, LaneTree(lanes=config.lanes))
    train, val = (ShardReader(SHARDS, index.of_split(split)) for split in ("train", "val"))
    loader = LaneLoader(train, spec.class_map, augment, seed=config.seed)
    ours = [report.validation.loss for report in trainer.fit(loader, val) if report.validation]
    theirs = [entry["told"]["loss"] for entry in told if entry["trial"] == 0 and "told" in entry]
    assert theirs == ours[: len(theirs)]
    assert theirs
    # Going on trains the others only.
    ran: list[int] = []
    run_trials = module.tuning.run_trials
    monkeypatch.setattr(
        module.tuning, "run_trials", lambda trial, options, *rest, **more: (ran.extend(options), run_trials(trial, options, *rest, **more))[1]
    )  # fmt: skip
    module.search(shards=SHARDS, out=OUT, apply=True)
    assert ran == [1, 2]
    assert load_section("train", type(config)).learning_rate == 0.02
    assert yaml.safe_load(Path("params.yaml.old").read_text())["train"]["learning_rate"] == 1e-6


@pytest.mark.slow
def test_a_search_without_any_score_says_why(searched, client) -> None:
    from pipeline.search import search

    recipe = Path("params.yaml")
    recipe.write_text(recipe.read_text().replace("learning_rate: 1.0e-06", "learning_rate: 1.0e+29"))
    add_search(searched, space={"train.learning_rate": [1e30]}, trials=2)
    with pytest.raises(TrainingError, match=r"^no trial has a score: the (loss|gradient) is not a number"):
        search(shards=SHARDS, out=OUT, apply=False)
    assert not OUT.exists()
