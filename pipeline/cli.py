"""The `unet` command. Each subcommand imports what it needs when it runs, so that `unet --help` is quick."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pipeline.command import run_command
from unet_core.errors import RecipeError

# What the stages of dvc.yaml leave behind, for commands that a person types without arguments.
SHARDS = Path("data/shards")
ACCEPTED = Path("data/accepted.parquet")
SPLITS = Path("data/splits.csv")
MODEL = Path("models/final")
RECEIPT = Path("models/receipt.json")
METRICS = Path("metrics")
REPORT = Path("reports/report.html")
TIMINGS = Path(".unet/timings.jsonl")

#: Not for `unet submit`: they need the cluster's address, or git.
RUN_HERE = ("submit", "attach", "status", "stage", "retrain")

Run = Callable[[argparse.Namespace], None]
STAGES = ("ingest", "validate", "split", "shard", "train", "register", "evaluate", "report")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["stage"]:
        sys.exit(_run_stage(words[1:]))
    parsed = _parser().parse_args(words)
    timings = TIMINGS if parsed.command == "promote" else None
    sys.exit(run_command(parsed.command, partial(parsed.run, parsed), timings=timings))


def _run_stage(words: Sequence[str]) -> int:
    """`unet stage NAME --OUT PATH ...`: every option is a path and an argument of the stage's `run`."""
    parser = argparse.ArgumentParser(prog="unet stage", description="Run one DVC stage; dvc.yaml calls this.")
    parser.add_argument("name", choices=STAGES)
    name = parser.parse_args(words[:1]).name

    def run() -> None:
        module = importlib.import_module(f"pipeline.stages.{name}")
        names = [word for word in module.run.__annotations__ if word != "return"]
        paths = argparse.ArgumentParser(prog=f"unet stage {name}")
        for word in names:
            paths.add_argument(f"--{word}", type=Path, required=True)
        given = vars(paths.parse_args(words[1:]))
        from pipeline.retrain_lock import alone

        with alone(name, TIMINGS.parent):
            module.run(**given)

    return run_command(name, run, timings=TIMINGS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unet", description="From a folder of images and masks to a registered, evaluated, promoted U-Net."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, run: Run) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    init = command("init", "look at a folder, write params.yaml for it, record the first batch", _init)
    init.add_argument("--source", required=True, help="folder (or URL) with images and masks")
    init.add_argument("--recipe", help="start from recipes/NAME.yaml instead of looking")
    init.add_argument("--force", action="store_true", help="replace a params.yaml of your own")
    add = command("add", "record what is new or changed in the source as a batch", _add)
    add.add_argument("--allow-removal", action="store_true", help="record samples that are gone as removed")
    shapes = command("shapes", "write the built-in synthetic data set as files", _shapes)
    shapes.add_argument("folder", type=Path)
    shapes.add_argument("--count", type=int, required=True, help="number of pictures")
    shapes.add_argument("--seed", type=int, default=0)
    preview = command("preview", "draw training samples as the network will see them", _preview)
    preview.add_argument("--out", type=Path, default=Path("reports/preview.png"), help="the picture")
    preview.add_argument("--count", type=int, default=16, help="number of samples")
    preview.add_argument("--epoch", type=int, default=0)
    overfit = command("overfit", "train on one batch until the loss is near zero: can the network learn?", _overfit)
    overfit.add_argument("--out", type=Path, default=Path("reports/overfit.png"), help="the picture")
    overfit.add_argument("--steps", type=int, default=1000, help="steps at most")
    tune = command("tune", "suggest a learning rate and a number of samples per lane", _tune)
    tune.add_argument("--out", type=Path, default=Path("reports/tune.png"), help="the picture")
    tune.add_argument("--quick", action="store_true", help="fewer steps")
    search = command("search", "try the trainings of the recipe's section search, judged on validation", _search)
    search.add_argument("--out", type=Path, default=Path("reports/search.yaml"), help="the best one's recipe")
    search.add_argument(
        "--apply", action="store_true", help="write it to params.yaml instead (the old one stays as .old)"
    )
    search.add_argument("--register", action="store_true", help="apply it, and run the pipeline up to the registry")
    _add_registry_commands(command)
    _add_cluster_commands(command)
    _add_retrain(command)
    _add_models_at_work(command)
    command("summary", "say where things stand", _summary)
    command("stage", "run one DVC stage (dvc.yaml calls this)", _init)
    return parser


def _add_models_at_work(command: Callable[[str, str, Run], argparse.ArgumentParser]) -> None:
    predict = command("predict", "write masks and more for images; goes on where it was stopped", _predict)
    predict.add_argument("paths", nargs="+", metavar="PATH", help="image files, folders, patterns or URLs")
    predict.add_argument("--out", type=Path, required=True, help="folder for masks/, overlays/ and the rest")
    predict.add_argument(
        "--save",
        default="mask,overlay",
        metavar="WHAT",
        help="any of mask,overlay,probabilities,uncertainty,polygons,instances (default mask,overlay)",
    )
    predict.add_argument("--model", default="models:/unet@champion", help="registry address or model directory")
    predict.add_argument("--exact", action="store_true", help="tiles that change nothing, slower")
    predict.add_argument("--tta", action="store_true", help="mean of eight turned and mirrored forms, 8 times slower")
    predict.add_argument(
        "--log", choices=("statistics", "images"), help="log them for `unet drift`; images: with small copies"
    )
    drift = command("drift", "say whether recent predictions look like the training data", _drift)
    drift.add_argument("--model", default="models:/unet@champion", help="whose: registry address or model directory")
    drift.add_argument(
        "--since", metavar="TIME", help="only later ones (UTC), such as 2026-11-01; default: the recipe's"
    )
    drift.add_argument("--last", type=int, metavar="COUNT", help="at most so many of the newest; default: the recipe's")
    drift.add_argument(
        "--out", type=Path, default=Path("reports/drift.html"), help="the page; .png and .json beside it"
    )
    drift.add_argument(
        "--exit-code", action="store_true", help="end with 0: like the training data, 10: drift, 11: too few to tell"
    )
    export = command("export", "write a model as one file for other programs, checked against PyTorch", _export)
    export.add_argument("model", metavar="MODEL", help="registry address or model directory")
    export.add_argument("--to", type=Path, required=True, metavar="FILE", help="model.onnx or model.pt2")
    reproduce = command("reproduce", "train a recorded run again and say whether the bits are the same", _reproduce)
    reproduce.add_argument("name", metavar="RUN_OR_MODEL", help="run id, models:/unet@champion or models:/unet/3")


def _add_registry_commands(command: Callable[[str, str, Run], argparse.ArgumentParser]) -> None:
    promote = command("promote", "let the gate compare the challenger with the champion, and move the alias", _promote)
    promote.add_argument("version", nargs="?", metavar="VERSION", help="a version's number; by default the newest")
    promote.add_argument("--force", action="store_true", help="without the gate; wants --reason")
    promote.add_argument("--reason", default="", help="why, for the history")
    rollback = command("rollback", "let champion name the version that it named before", _rollback)
    rollback.add_argument("--reason", default="", help="why, for the history")
    command("history", "list every move of the champion", _history)
    lineage = command("lineage", "tell where a model comes from", _lineage)
    lineage.add_argument("model", metavar="MODEL", help="models:/unet@champion or models:/unet/3")
    diff = command("diff", "tell what changed from one model to another", _diff)
    diff.add_argument("old", metavar="MODEL", help="models:/unet/2")
    diff.add_argument("new", metavar="MODEL", help="models:/unet@champion")


def _add_cluster_commands(command: Callable[[str, str, Run], argparse.ArgumentParser]) -> None:
    address = "Ray's Jobs API (default RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265)"
    submit = command("submit", "run the pipeline, a stage or a command on a Ray cluster, and follow it", _submit)
    submit.add_argument(
        "words", nargs="*", metavar="STAGE | -- COMMAND", help="a last stage, or any unet command; default: all stages"
    )
    submit.add_argument("--address", metavar="URL", help=address)
    submit.add_argument("--resume", action="store_true", help="follow a job that does the same with this tree")
    attach = command("attach", "follow a submitted job again, and take its results home", _attach)
    attach.add_argument("job", nargs="?", metavar="JOB", help="by default the last one submitted from this tree")
    attach.add_argument("--address", metavar="URL", help=address)
    status = command("status", "show cluster, jobs, runs and champion", _status)
    status.add_argument("--address", metavar="URL", help=address)


def _add_retrain(command: Callable[[str, str, Run], argparse.ArgumentParser]) -> None:
    retrain = command("retrain", "what a scheduler calls: see what is new, train, record, ask the gate", _retrain)
    retrain.add_argument(
        "--branch", metavar="NAME", help="commit the results there; without: a patch file below .unet/"
    )
    retrain.add_argument("--submit", action="store_true", help="reproduce on a Ray cluster, as `unet submit` does")
    retrain.add_argument("--max-age", type=float, metavar="DAYS", help="act where the champion is older")
    retrain.add_argument("--force", nargs="?", const="by hand", metavar="REASON", help="act though nothing is new")
    retrain.add_argument("--wait", action="store_true", help="for another retraining to end, instead of leaving")
    retrain.add_argument("--time-limit", type=float, metavar="HOURS", help="then stop; the next call goes on")
    retrain.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
    retrain.add_argument(
        "--exit-code",
        action="store_true",
        help="end with 0: nothing to do, 10: promoted, 11: not promoted, 12: another retraining is at work",
    )


def _init(parsed: argparse.Namespace) -> None:
    from pipeline.init import init

    init(source=parsed.source, recipe=parsed.recipe, force=parsed.force)


def _add(parsed: argparse.Namespace) -> None:
    from pipeline.arrivals import add

    add(allow_removal=parsed.allow_removal)


def _shapes(parsed: argparse.Namespace) -> None:
    from pipeline.arrivals import draw_source

    draw_source(parsed.folder, count=parsed.count, seed=parsed.seed)


def _preview(parsed: argparse.Namespace) -> None:
    from pipeline.preview import preview

    preview(shards=SHARDS, out=parsed.out, count=parsed.count, epoch=parsed.epoch)


def _overfit(parsed: argparse.Namespace) -> None:
    from pipeline.overfit import overfit

    overfit(shards=SHARDS, out=parsed.out, steps=parsed.steps)


def _tune(parsed: argparse.Namespace) -> None:
    from pipeline.tune import tune

    tune(shards=SHARDS, out=parsed.out, quick=parsed.quick)


def _search(parsed: argparse.Namespace) -> None:
    from pipeline.search import register_winner, search

    runs = search(shards=SHARDS, out=parsed.out, apply=parsed.apply or parsed.register)
    if parsed.register:
        register_winner(runs, model=MODEL, receipt=RECEIPT)


def _promote(parsed: argparse.Namespace) -> None:
    from pipeline.judging import DataPaths
    from pipeline.promote import Request, promote

    ask = Request(version=parsed.version, force=parsed.force, reason=parsed.reason)
    data = DataPaths(accepted=ACCEPTED, splits=SPLITS, shards=SHARDS)
    promote(data=data, model=MODEL, receipt=RECEIPT, report=REPORT, ask=ask)


def _rollback(parsed: argparse.Namespace) -> None:
    from pipeline.rollback import rollback

    rollback(reason=parsed.reason)


def _history(_: argparse.Namespace) -> None:
    from pipeline.rollback import show_history

    show_history()


def _lineage(parsed: argparse.Namespace) -> None:
    from pipeline.ancestry import show_lineage

    show_lineage(parsed.model)


def _diff(parsed: argparse.Namespace) -> None:
    from pipeline.ancestry import show_difference

    show_difference(parsed.old, parsed.new)


def _retrain(parsed: argparse.Namespace) -> None:
    from pipeline.retrain import retrain
    from pipeline.retrain_call import Request
    from pipeline.retrain_look import Paths

    ask = Request(
        branch=parsed.branch,
        submit=parsed.submit,
        wait=parsed.wait,
        max_age_days=parsed.max_age,
        force=parsed.force,
        time_limit_hours=parsed.time_limit,
        dry_run=parsed.dry_run,
    )
    paths = Paths(
        accepted=ACCEPTED, splits=SPLITS, shards=SHARDS, model=MODEL, receipt=RECEIPT, metrics=METRICS, report=REPORT
    )
    code = retrain(ask, paths)
    if parsed.exit_code:
        sys.exit(code)


def _predict(parsed: argparse.Namespace) -> None:
    from pipeline.predict import predict
    from pipeline.predict_image import Options

    save = frozenset(word.strip() for word in parsed.save.split(",") if word.strip())
    options = Options(exact=parsed.exact, tta=parsed.tta, save=save)
    predict(parsed.paths, out=parsed.out, model=parsed.model, options=options, log_what=parsed.log)


def _drift(parsed: argparse.Namespace) -> None:
    from pipeline.drift import drift

    code = drift(model=parsed.model, shards=SHARDS, page=parsed.out, since=parsed.since, last=parsed.last)
    if parsed.exit_code:
        sys.exit(code)


def _export(parsed: argparse.Namespace) -> None:
    from pipeline.export import export

    export(parsed.model, to=parsed.to)


def _reproduce(parsed: argparse.Namespace) -> None:
    from pipeline.reproduce import reproduce

    reproduce(parsed.name, shards=SHARDS)


def _submit(parsed: argparse.Namespace) -> None:
    from pipeline.submit import submit

    stage = parsed.words[0] if parsed.words[:1] and parsed.words[0] in STAGES else None
    words = parsed.words[1:] if stage else parsed.words
    if stage and words:
        raise RecipeError(f"one stage, and nothing behind it: {' '.join(parsed.words)}. A command comes behind `--`.")
    if words and _parser().parse_args(words).command in RUN_HERE:
        raise RecipeError(f"runs here, and not on a cluster: unet {' '.join(words)}. Type it without `unet submit`.")
    sys.exit(submit(words, stage=stage, address=parsed.address, resume=parsed.resume))


def _attach(parsed: argparse.Namespace) -> None:
    from pipeline.submit import attach

    sys.exit(attach(parsed.job, address=parsed.address))


def _status(parsed: argparse.Namespace) -> None:
    from pipeline.status import status

    status(address=parsed.address)


def _summary(_: argparse.Namespace) -> None:
    from pipeline.summary import summary

    summary(metrics=METRICS, receipt=RECEIPT, report=REPORT)


if __name__ == "__main__":
    main()
