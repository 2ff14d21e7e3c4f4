"""`unet search`: many short trainings of one recipe, compared on validation; the best one is a recipe again.

Test images are never looked at. Registering is what the pipeline does with the recipe that won; `register_winner` runs
it.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline import cluster, tracking, tuning
from pipeline.command import say
from pipeline.lineage import code_hash, data_state
from pipeline.params import RECIPE, change_recipe, load_section
from pipeline.placement import Placement, read_placement
from pipeline.progress import Progress
from pipeline.receipt import read_receipt, registered_version
from pipeline.retrain_steps import reproduce
from pipeline.search_runs import SearchRuns
from pipeline.shard_places import find_shards
from pipeline.space import Changes, SearchConfig, draw_trials
from pipeline.stages.train import check_classes
from pipeline.trial import NO_SCORE, run_trial, score
from pipeline.worker import read_recipe, read_weights
from unet_core.errors import RecipeError, TrainingError, UnetError
from unet_core.index import read_index
from unet_core.model_config import ModelConfig
from unet_core.reader import ShardReader
from unet_core.train_config import TrainConfig
from unet_core.transforms import AugmentConfig

JOURNAL = "trials.jsonl"
#: What a trial may change, each with the defaults and presets that complete it.
SECTIONS: Mapping[str, type] = {"model": ModelConfig, "augment": AugmentConfig, "train": TrainConfig}


def search(*, shards: Path, out: Path, apply: bool) -> SearchRuns:
    """Run the trials that are not done yet, and write the recipe of the best one to `out`, or to params.yaml."""
    placement = read_placement()
    config, train = load_section("search", SearchConfig), load_section("train", TrainConfig)
    config.check_score(train.select_by)
    config.check_epochs(train.epochs)
    text = RECIPE.read_text(encoding="utf-8")
    trials = _draw_different(text, config)
    recipes = [change_recipe(text, changes) for changes in trials]
    key = hashlib.sha256(f"{text}{data_state(shards)}{code_hash(placement.root)}".encode()).hexdigest()[:32]
    work_dir = placement.state_dir / "search" / key
    work_dir.mkdir(parents=True, exist_ok=True)
    _check(shards, recipes, work_dir)
    _check_presets(text, config, work_dir)
    client = tracking.connect(placement.tracking_uri, placement.experiment)
    record = Record(work_dir / JOURNAL, trials, SearchRuns(client, key), train)
    try:
        _run(record, recipes, config, placement, shards, work_dir)
        best = record.best()
    except BaseException:
        record.runs.fail()
        raise
    record.runs.finish(trials[best])
    _tell(record, best)
    if apply:
        RECIPE.with_name(f"{RECIPE.name}.old").write_text(text, encoding="utf-8")
    target = RECIPE if apply else out
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(recipes[best], encoding="utf-8")
    shutil.rmtree(work_dir)
    say(f"the best recipe: {target}. " + ("Next: dvc repro" if apply else f"Next: cp {out} {RECIPE} && dvc repro"))
    return record.runs


def register_winner(runs: SearchRuns, *, model: Path, receipt: Path) -> None:
    """Take params.yaml, the recipe that won, down the road to the registry, and note its version with the search."""
    placement = read_placement()
    reproduce(None, placement.state_dir / "search.log")
    client = tracking.connect(placement.tracking_uri, placement.experiment)
    version = registered_version(client, read_receipt(receipt), model)
    runs.note_version(version.name, version.number)
    say(f"registered: {version.name} version {version.number}. Next: unet promote")


class Record:
    """What each trial told, in a file, so that a search that was killed does not begin anew; and in MLflow."""

    def __init__(self, path: Path, trials: Sequence[Changes], runs: SearchRuns, train: TrainConfig) -> None:
        self.trials = trials
        self.runs = runs
        self.told: dict[int, list[dict[str, Any]]] = {}
        self.ended: set[int] = set()
        self._path = path
        self.select_by = train.select_by
        self._read()
        self._bar = Progress(total=len(trials), label="search", unit="trials")
        self._bar.advance(len(self.ended))

    def _read(self) -> None:
        """Take up the trials that had ended; the others train again, which gives the same."""
        lines = self._path.read_text(encoding="utf-8").split("\n")[:-1] if self._path.exists() else []
        entries = [json.loads(line) for line in lines]
        self.ended = {entry["trial"] for entry in entries if "ended" in entry}
        kept = [entry for entry in entries if entry["trial"] in self.ended]
        for entry in kept:
            if "ended" not in entry:
                self.told.setdefault(entry["trial"], []).append(entry["told"])
        self._path.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")

    def on_report(self, trial: int, told: dict[str, Any]) -> None:
        """Take what a trial says of an epoch."""
        self.told.setdefault(trial, []).append(told)
        self._write({"trial": trial, "told": told})
        self.runs.log(trial, self.trials[trial], told)

    def on_end(self, trial: int) -> None:
        """Take that a trial has ended, of itself or not."""
        self.ended.add(trial)
        self._write({"trial": trial, "ended": True})
        self.runs.end(trial, failed=self.failure(trial) is not None)
        self._bar.advance()

    def _write(self, entry: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")

    def failure(self, trial: int) -> str | None:
        """Why a trial could not go on."""
        return next((told["failure"] for told in self.told.get(trial, ()) if "failure" in told), None)

    def best_epoch(self, trial: int) -> tuple[float, int]:
        """Best score of a trial and its epoch, as its training would have kept them."""
        seen = [(score(told, self.select_by), -told["epoch"]) for told in self.told.get(trial, ()) if "loss" in told]
        found, epoch = max(seen, default=(NO_SCORE, 0))
        return found, -epoch

    def ranking(self) -> list[int]:
        """Trials from the best to the worst; of equals the first."""
        return sorted(range(len(self.trials)), key=lambda trial: (-self.best_epoch(trial)[0], trial))

    def best(self) -> int:
        """The trial that won."""
        self._bar.close()
        first = self.ranking()[0]
        if self.best_epoch(first)[0] == NO_SCORE:
            raise TrainingError(f"no trial has a score: {self.failure(first) or 'no class occurs in validation'}.")
        return first


def _draw_different(text: str, config: SearchConfig) -> list[Changes]:
    """Trials whose whole recipes differ, the recipe's own first; says where these are fewer than were asked for."""
    with TemporaryDirectory() as folder:
        path = Path(folder, RECIPE.name)

        def complete(changes: Changes) -> Any:
            path.write_text(changed := change_recipe(text, changes), encoding="utf-8")
            try:
                return [load_section(name, cls, path) for name, cls in SECTIONS.items()]
            except RecipeError:
                # Refused with the trial's number, once all are drawn.
                return changed

        trials = draw_trials(config, complete)
    if len(trials) == 1:
        raise RecipeError("search.space: no trial would differ from the recipe as it is. Add other values.")
    if len(trials) < config.trials:
        say(f"{len(trials)} trials, not {config.trials}: search.space has no more that differ from each other")
    return trials


def _check(shards: Path, recipes: Sequence[str], work_dir: Path) -> None:
    """Find trials that can't be trained before any of them is."""
    index = read_index(shards)
    check_classes(index, load_section("train", TrainConfig))
    train = ShardReader(shards, index.of_split("train"))
    path = work_dir / RECIPE.name
    for number, text in enumerate(recipes):
        path.write_text(text, encoding="utf-8")
        try:
            spec, config, augment = read_recipe(index, path)
            config.make_loss(spec)
            config.read_border_weight(spec.class_map)
            config.check_norm(spec, augment, train, config.plan(train, spec.class_map, epoch=0))
        except UnetError as error:
            raise type(error)(f"trial {number} can't be trained: {error}") from error


def _check_presets(text: str, config: SearchConfig, work_dir: Path) -> None:
    """Refuse presets that the recipe's own keys make one network: their trials would be the same."""
    path, seen = work_dir / RECIPE.name, dict[ModelConfig, str]()
    for name in config.space.get("model.preset", ()):
        path.write_text(change_recipe(text, {"model.preset": name}), encoding="utf-8")
        other = seen.setdefault(load_section("model", ModelConfig, path), name)
        if other != name:
            raise RecipeError(
                f"search.space.model.preset: {other} and {name} are the same network here: the recipe's own keys in "
                "model go before a preset's. Remove them, or search them instead."
            )


def _run(
    record: Record, recipes: Sequence[str], config: SearchConfig, placement: Placement, shards: Path, work_dir: Path
) -> None:
    index = read_index(shards)
    spec, train, _ = read_recipe(index)
    common = {
        "root": str(placement.root),
        "index": index,
        "places": find_shards(shards, index, placement),
        "weights": read_weights(spec, train),
        "loader_threads": placement.loader_threads,
        "epochs": train.epochs,
    }
    left = {number: {**common, "recipe": text} for number, text in enumerate(recipes) if number not in record.ended}
    if not left:
        return
    with cluster.cluster(placement, train.threads_per_worker) as wait_for_cluster:
        wait_for_cluster()
        errors = tuning.run_trials(
            run_trial,
            left,
            record,
            rungs=tuning.Rungs(epochs=train.epochs, grace_epochs=config.grace_epochs, reduction=config.reduction),
            threads=train.threads_per_worker,
            work_dir=work_dir,
        )
    if set(left) - record.ended:
        why = errors[0].strip().splitlines()[-1].rstrip(".") if errors else "interrupted"
        done = f"{len(record.ended)} of {len(recipes)} trials have ended"
        raise TrainingError(f"the search is not at its end: {done}: {why}. Run `unet search` again to go on.")


def _tell(record: Record, best: int) -> None:
    name = record.select_by
    for trial in record.ranking():
        found, epoch = record.best_epoch(trial)
        last = max((told["epoch"] for told in record.told.get(trial, ()) if "epoch" in told), default=0)
        changes = ", ".join(f"{key}={value}" for key, value in record.trials[trial].items()) or "the recipe as it is"
        failure = record.failure(trial)
        result = "no score" if found == NO_SCORE else f"val_{name} {abs(found):.4f} at epoch {epoch}"
        result += f", ended after {last}" if epoch else ""
        say(f"{'*' if trial == best else ' '} trial {trial}: {result}: {changes}{f'; {failure}' if failure else ''}")
