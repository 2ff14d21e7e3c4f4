"""`unet retrain`: the one command a scheduler calls; retrain_call.py is what a call does."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pipeline.command import say, terminated_as_interrupted
from pipeline.placement import Placement, read_placement
from pipeline.retrain_call import Request, Retraining, now, refusal
from pipeline.retrain_failure import tell_of_failure, to_sentence
from pipeline.retrain_lock import held, holder
from pipeline.retrain_look import Paths, look, make_record
from pipeline.retrain_reasons import find_reasons, is_stale, join_reasons, say_idle
from pipeline.retrain_record import check_branch, check_name
from pipeline.retrain_steps import has_remote
from pipeline.retrain_summary import Outcome, Summary
from pipeline.retrain_update import foresee
from pipeline.time_limit import check_hours
from unet_core.errors import RecipeError, RegistryError

#: What schedulers get for --exit-code; errors have the codes of their classes.
EXIT_CODES: dict[Outcome, int] = {"nothing to do": 0, "promoted": 10, "not promoted": 11}
BUSY = 12


def retrain(ask: Request, paths: Paths) -> int:
    """Do what there is to do and say why; the exit code that tells a scheduler what came of it."""
    placement = read_placement()
    if ask.dry_run:
        _check(ask, placement)
        _explain(ask, paths, placement)
        return EXIT_CODES["nothing to do"]
    path = placement.state_dir / "retrain.lock"
    with ExitStack() as stack:
        with _told(paths, placement):
            # A full disk or another user's file may stand in the way.
            lock = stack.enter_context(held(path, wait=ask.wait))
        if lock is None:
            say(f"another retraining is at work in {placement.root}: {holder(path)}. Nothing done.")
            return BUSY
        with terminated_as_interrupted():
            return EXIT_CODES[_run(ask, paths, placement, lock)]


def _run(ask: Request, paths: Paths, placement: Placement, lock: int) -> Outcome:
    with _told(paths, placement):
        # Perhaps the recipe can't be read, since somebody merged it.
        _check(ask, placement)
        retraining = Retraining(ask, paths, placement, lock)
    return retraining.run()


@contextmanager
def _told(paths: Paths, placement: Placement) -> Iterator[None]:
    """People hear of what fails before the steps begin."""
    began = now()
    try:
        yield
    except Exception as error:
        summary = Summary(outcome="failed", sentence=to_sentence(error), model="", time=began)
        tell_of_failure(summary, report=paths.report, webhook=placement.webhook)
        raise


def _check(ask: Request, placement: Placement) -> None:
    """An error for what can't be done, whatever there is to do."""
    if ask.max_age_days is not None and not ask.max_age_days > 0:
        raise RecipeError(f"--max-age {ask.max_age_days:g}: not a number of days above 0. Correct it.")
    check_hours(ask.time_limit_hours)
    if ask.submit and placement.tracking_uri.startswith("sqlite:"):
        raise RegistryError(
            "--submit with a registry of this machine: the cluster's models would not be in it. Set "
            "MLFLOW_TRACKING_URI to the server that the cluster uses."
        )


def _explain(ask: Request, paths: Paths, placement: Placement) -> None:
    """Say what would be done, and do nothing."""
    goal = make_record(paths, placement, ask.branch)
    check_name(goal)
    if text := foresee(placement.root):
        say(text)
    found = look(paths, placement, goal, may_mend=False)
    away = [name for part in found.status.absent.values() for name in part]
    if away and has_remote(None):
        say(f"would first pull what is recorded and not here: {', '.join(away)}; what follows may then be less")
    reasons = find_reasons(found.seen, max_age_days=ask.max_age_days, force=ask.force)
    if not reasons:
        say(say_idle(found.seen, found.standing.model))
        return
    check_branch(goal)
    will_run = is_stale(found.seen) or found.must_add
    asks_gate = will_run or found.seen.is_judged is not True or ask.force is not None
    steps = {
        "unet add": found.must_add,
        "unet submit" if ask.submit else "dvc repro": will_run,
        "dvc push": has_remote(None),
        f"a commit on branch {ask.branch}" if ask.branch else "a patch file": will_run or not found.seen.is_recorded,
        "unet promote": asks_gate,
    }
    say(f"would retrain: {join_reasons(reasons)}")
    say(f"steps: {', '.join(step for step, is_needed in steps.items() if is_needed) or 'none, only word of it'}")
    if will_run and (error := refusal(placement.root)):
        say(f"and would refuse before the first of them: {error}")
