"""`unet reproduce`: train a recorded run again, from its own source tree, and say whether the bits are the same.

The recorded tree is restored in a git worktree below .unet/, with an MLflow store of its own, so that neither the
user's files nor the registry change. It runs the recorded code: reproduce runs that you trust.
"""

import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pipeline import identity, tracking
from pipeline.command import say
from pipeline.dvc_process import DVC, dvcs_reason
from pipeline.git_process import gits_reason, run_git
from pipeline.identity import Identity
from pipeline.lineage import Source, data_state
from pipeline.params import RECIPE, read_sections
from pipeline.placement import environment_of, read_placement
from unet_core.checkpoint import weights_hash
from unet_core.errors import DataError, DifferenceError, RegistryError, StorageError, TrainingError
from unet_core.hashing import hash_file

log = logging.getLogger(__name__)

#: Seconds in which an interrupted training may end its workers.
GRACE_SECONDS = 30


def reproduce(name: str, *, shards: Path) -> None:
    """Train again what `name` names; DifferenceError if the weights have another hash."""
    placement = read_placement()
    client = tracking.connect(placement.tracking_uri, placement.experiment)
    run_id = tracking.find_run(client, name)
    with tempfile.TemporaryDirectory() as scratch:
        record = identity.read_identity(tracking.fetch_run_file(client, run_id, identity.IDENTITY_NAME, Path(scratch)))
    for line in (differences := environment_differences(record)):
        log.warning("not as it was recorded: %s", line)
    if differences:
        log.warning("the bits may differ for that reason alone; training goes on")
    with restored(placement.root, record) as tree:
        bring_weights(placement.root, tree)
        found = find_shards(placement.root, tree, shards, record)
        inputs = identity.input_hashes(tree, found)
        differences += input_differences(record.inputs, inputs)
        model, metrics = tree / ".unet/out/model", tree / ".unet/out/train.json"
        _train(tree, found, model, metrics)
        sha256 = weights_hash(model)
        differences += plan_differences(record.plans_sha256, _recorded_plans(model.parent))
        again = json.loads(metrics.read_text(encoding="utf-8"))
    if sha256 == record.weights_sha256:
        say(f"the same bits: sha256 {sha256}")
        return
    raise DifferenceError(explain(record, sha256, again, differences))


def environment_differences(record: Identity) -> list[str]:
    """What of processor and library versions is not as it was recorded."""
    found = []
    if (here := identity.processor()) != record.processor:
        found.append(f"processor: recorded {record.processor}, here {here}")
    now = identity.versions()
    for library, version in record.versions.items():
        if now.get(library) != version:
            found.append(f"version of {library}: recorded {version}, here {now.get(library, 'unknown')}")
    return found


def input_differences(recorded: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Inputs of the restored tree whose hash is not the recorded one."""
    names = sorted({*recorded, *here})
    return [f"input {name}" for name in names if recorded.get(name) != here.get(name)]


def plan_differences(recorded: Sequence[str], again: Sequence[str]) -> list[str]:
    """The first epoch that had other samples, or the same in another order; what follows comes of it."""
    for epoch, (old, new) in enumerate(zip(recorded, again, strict=False)):
        if old != new:
            return [f"plan of epoch {epoch}: recorded {old[:12]}, now {new[:12]}"]
    return [] if len(recorded) == len(again) else [f"epochs: recorded {len(recorded)}, now {len(again)}"]


def explain(record: Identity, sha256: str, scores: Mapping[str, object], differences: list[str]) -> str:
    """The sentence for other bits: hashes, what differs, and the validation scores side by side."""
    causes = "; ".join(differences) or "neither processor nor versions nor inputs differ, so the training itself does"
    shown = ", ".join(f"{key} {record.scores.get(key)} and {scores.get(key)}" for key in ("val_loss", "val_dice"))
    return (
        f"other bits: recorded sha256 {record.weights_sha256}, now {sha256}. What differs: {causes}. "
        f"Validation, recorded and now: {shown}."
    )


@contextmanager
def restored(root: Path, record: Identity) -> Iterator[Path]:
    """The recorded source tree, recipe and lock in a worktree that is gone afterwards."""
    source = record.source
    _check(source)
    if run_git(root, "cat-file", "-e", f"{source.commit}^{{commit}}").returncode:
        raise RegistryError(
            f"the recorded commit is not in this repository: {source.commit}. Fetch it (`git fetch --all`), "
            "or run this where the model was trained."
        )
    parent = root / ".unet" / "reproduce"
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    top = folder / "tree"
    # A scheduler's SIGTERM cleans up as Ctrl-C does.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _must(run_git(root, "worktree", "add", "--quiet", "--detach", str(top), source.commit), "the commit")
        if source.patch:
            patch = source.patch.encode("utf-8", "surrogateescape")
            _must(run_git(top, "apply", "--whitespace=nowarn", "-", given=patch), "the patch")
        tree = top / source.prefix
        (tree / RECIPE).write_text(record.recipe, encoding="utf-8")
        if record.lock is not None:
            (tree / "dvc.lock").write_text(record.lock, encoding="utf-8")
        yield tree
    finally:
        run_git(root, "worktree", "remove", "--force", str(top))
        shutil.rmtree(folder, ignore_errors=True)
        run_git(root, "worktree", "prune")
        signal.signal(signal.SIGTERM, before)


def _check(source: Source) -> None:
    """What comes from a tracking server must not reach git as an option, nor lead out of the worktree."""
    if not source.commit:
        raise RegistryError("the run recorded no commit: it was trained outside git. Commit the project, train again.")
    prefix = PurePosixPath(source.prefix)
    if not re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", source.commit) or prefix.is_absolute() or ".." in prefix.parts:
        raise RegistryError(
            f"record of identity is damaged: commit {source.commit!r}, folder {source.prefix!r}. Train again."
        )


def bring_weights(root: Path, tree: Path) -> None:
    """Copy the files that the recorded training began with from the user's tree: git seldom has them.

    DataError where one is missing there, too. Whether it is the recorded one the training itself looks.
    """
    recipe = read_sections(tree / RECIPE)
    for section, key in (("train", "initial_weights"), ("model", "encoder_weights")):
        told = (recipe.get(section) or {}).get(key)
        if not told:
            continue
        path = PurePosixPath(told["path"])
        # Any other path leads to the same file from both trees, or nowhere.
        if path.is_absolute() or ".." in path.parts or (tree / path).exists():
            continue
        if not (root / path).is_file():
            raise DataError(
                f"weights that the recorded training began with are missing: {path}, sha256 {told['sha256']} "
                f"({section}.{key}). Bring that file there, then try again."
            )
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / path, tree / path)


def find_shards(root: Path, tree: Path, shards: Path, record: Identity) -> Path:
    """The recorded shards: the user's own if they are the same, else from DVC's cache or remote."""
    wanted = record.inputs["index"]
    for folder in (root / shards, tree / shards):
        if folder == tree / shards:
            _pull(root, tree, shards, wanted)
        if (folder / "index.json").exists() and data_state(folder)["data.index_sha256"] == wanted:
            return folder
    raise DataError(
        f"the recorded shards are not the recorded lock's: {shards}/index.json: recorded {wanted}, "
        f"DVC gave {hash_file(tree / shards / 'index.json')}. Train again."
    )


def _pull(root: Path, tree: Path, shards: Path, wanted: str) -> None:
    """Get shards into the worktree with the user's DVC settings and cache."""
    local = root / ".dvc" / "config.local"
    if local.exists():
        shutil.copy(local, tree / ".dvc" / "config.local")
    cache = subprocess.run([*DVC, "cache", "dir"], cwd=root, capture_output=True, text=True, check=False)
    words = [*DVC, "cache", "dir", "--local", cache.stdout.strip()]
    subprocess.run(words, cwd=tree, capture_output=True, check=False)
    for command in (["checkout"], ["pull"]):
        done = subprocess.run([*DVC, *command, str(shards)], cwd=tree, capture_output=True, text=True, check=False)
        if done.returncode == 0 and (tree / shards / "index.json").exists():
            return
    raise DataError(
        f"the recorded shards are missing: {shards} with index {wanted}: neither here nor in DVC's cache "
        f"nor at its remote: {dvcs_reason(done.stderr, done.returncode)}. Get them (`dvc pull`), then try again."
    )


def _train(tree: Path, shards: Path, model: Path, metrics: Path) -> None:
    """Run the worktree's own train stage, with an MLflow store of its own. Workers come from the environment."""
    out = model.parent
    out.mkdir(parents=True)
    paths = {
        "shards": shards,
        "model": model,
        "metrics": metrics,
        "curves": out / "curves.csv",
        "validation": out / "validation.csv",
        "examples": out / "examples.png",
    }
    words = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    environment = environment_of(tree, tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    # In a session of its own: Ctrl-C reaches it once, through us.
    command = [sys.executable, "-m", "pipeline.cli", "stage", "train", *words]
    with subprocess.Popen(command, cwd=tree, env=environment, start_new_session=True) as process:
        try:
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    if code:
        raise TrainingError(f"the recorded training did not run here: exit code {code}; its own message stands above.")


def _recorded_plans(out: Path) -> Sequence[str]:
    """Plans of the training that the worktree has just recorded beside its results, by its own code."""
    (path,) = out.glob(f"mlruns/**/{identity.IDENTITY_NAME}")
    return identity.read_identity(path).plans_sha256


def _must(done: subprocess.CompletedProcess[bytes], what: str) -> None:
    if done.returncode:
        raise StorageError(f"the recorded source tree can't be restored: {what}: {gits_reason(done)}.")
