"""`unet predict`: images, folders, patterns or URLs -> masks at the original size, and what else is asked for."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.command import say
from pipeline.image_files import find_images, name_results
from pipeline.model_files import ModelFiles, open_model_files
from pipeline.parallel import FEW, WORTH_SECONDS, map_parallel
from pipeline.placement import Placement, read_placement
from pipeline.predict_image import Job, Options, Outcome, died, load_model, predict_job
from pipeline.prediction_log import Logbook, What, check_log
from pipeline.results import FOLDERS
from pipeline.results_record import has_others, is_done
from pipeline.storage import version_at
from unet_core.checkpoint import model_hash
from unet_core.errors import DataError, RecipeError, UnetError

#: Failed images that are named; the number of the others is said.
MAX_NAMED = 20


def predict(places: Sequence[str], *, out: Path, model: str, options: Options, log_what: What | None = None) -> None:
    """Predict all images that have no results yet; `model` is a registry address or a model directory.

    With `log_what`, each is logged for `unet drift`: its statistics, or also a small copy of it.
    Raises DataError at the end that names the images that could not be predicted; the others are done.
    """
    unknown = sorted(options.save - set(FOLDERS))
    if unknown or not options.save:
        raise RecipeError(f"--save: unknown: {', '.join(unknown)!r}. Choose among {', '.join(FOLDERS)}.")
    images = name_results(find_images(places, outside=out))
    placement = read_placement()
    with open_model_files(model) as files:
        # Whatever is wrong with the model or the log is told before any image is.
        load_model(files)
        log = _logbook(placement, files, log_what) if log_what else None
        if log is not None:
            check_log(placement.root / log.folder)
        jobs = _jobs(images, files, options)
        todo = _without_done(jobs, out)
        out.mkdir(parents=True, exist_ok=True)
        work = partial(predict_job, model=files, root=placement.root, out=out, options=options, log=log)
        outcomes = _predict_all(work, todo, placement)
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    what = ", ".join(FOLDERS[name] for name in FOLDERS if name in options.save)
    say(f"{len(outcomes) - len(failed)} images predicted: {what} in {out}")
    if log is not None:
        _tell_log(log, outcomes)
    _tell_failed(failed, len(jobs))


def _logbook(placement: Placement, model: ModelFiles, what: What) -> Logbook:
    return Logbook(
        folder=placement.prediction_log,
        what=what,
        model_sha256=model_hash(model.directory),
        copies_bytes=int(placement.prediction_log_gb * 1e9),
    )


def _tell_log(log: Logbook, outcomes: Sequence[Outcome]) -> None:
    logged = sum(outcome.failure is None for outcome in outcomes)
    say(
        f"{logged} images logged in {log.folder}: {'statistics and small copies' if log.what == 'images' else log.what}"
    )
    if left_out := sum(outcome.has_no_copy for outcome in outcomes):
        say(
            f"{left_out} of them have no copy: all copies may take {log.copies_bytes / 1e9:g} GB. Remove old ones, or "
            "raise UNET_PREDICTION_LOG_GB"
        )


def _predict_all(work: Callable[[Job], Outcome], todo: Sequence[Job], placement: Placement) -> list[Outcome]:
    """In several processes where that is worth their start: of many images, of slow ones, and on a cluster."""
    first: list[Outcome] = []
    few = FEW
    if placement.ray_address is not None:
        few = 1
    elif 1 < len(todo) <= FEW:
        begun = time.monotonic()
        first = [work(todo[0])]
        few = 0 if (time.monotonic() - begun) * (len(todo) - 1) > WORTH_SECONDS else FEW
    left = todo[len(first) :]
    rest = map_parallel(work, left, placement=placement, label="predict", unit="images", on_death=died, few=few)
    return [*first, *rest]


def _jobs(images: dict[str, str], model: ModelFiles, options: Options) -> list[Job]:
    made = {
        "weights_sha256": model.weights_sha256,
        "description_sha256": model.description_sha256,
        "options": {"exact": options.exact, "tta": options.tta, "save": sorted(options.save)},
    }
    return [Job(address=address, name=name, about=_about(address, made)) for address, name in images.items()]


def _about(address: str, made: dict[str, Any]) -> dict[str, Any]:
    try:
        version = version_at(address)
    except UnetError:
        # Reading it will tell why.
        version = "unknown"
    return {"image": address, "version": version, **made}


def _without_done(jobs: Sequence[Job], out: Path) -> list[Job]:
    todo = [job for job in jobs if not is_done(out, job.name, job.about)]
    if len(todo) < len(jobs):
        say(f"{len(jobs) - len(todo)} of {len(jobs)} images have results of this model with these options: skipped")
    others = sum(has_others(out, job.name) for job in todo)
    if others:
        say(f"{others} images have results of another model, other options or an older file: predicted anew")
    return todo


def _tell_failed(failed: Sequence[Outcome], num_images: int) -> None:
    if not failed:
        return
    lines = [f"  {outcome.address}: {outcome.failure}" for outcome in failed[:MAX_NAMED]]
    if len(failed) > MAX_NAMED:
        lines.append(f"  and {len(failed) - MAX_NAMED} more")
    raise DataError(
        f"{len(failed)} of {num_images} images could not be predicted, the others are done:\n" + "\n".join(lines)
    )
