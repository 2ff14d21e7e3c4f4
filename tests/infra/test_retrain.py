"""infra/retrain.sh: what schedulers call, and the workflows that call it."""

import fcntl
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "infra" / "retrain.sh"


def copy_script(tree: Path) -> None:
    (tree / "infra").mkdir(parents=True)
    (tree / "infra" / "retrain.sh").write_bytes(SCRIPT.read_bytes())
    (tree / "infra" / "retrain.sh").chmod(0o755)


def test_a_second_retraining_leaves_and_says_so(tmp_path: Path) -> None:
    copy_script(tmp_path)
    (tmp_path / ".unet").mkdir()
    with (tmp_path / ".unet" / "retrain.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([tmp_path / "infra" / "retrain.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout == f"another retraining runs in {tmp_path}: nothing done\n"


def test_the_workflows_call_what_is_there() -> None:
    folder = ROOT / ".github" / "workflows"
    texts = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.yaml")}
    steps = [step for text in texts.values() for job in yaml.safe_load(text)["jobs"].values() for step in job["steps"]]
    words = [word for step in steps for word in step.get("run", "").split()]
    targets = {words[i + 1] for i, word in enumerate(words) if word == "make"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets == {"check", "test-fast", "install"}
    assert all(f"\n{target}:" in makefile for target in targets)
    scripts = {word for word in words if word.startswith((".ci/", "infra/"))}
    assert scripts == {".ci/run", "infra/retrain.sh"}
    assert all((ROOT / script).stat().st_mode & 0o100 for script in scripts)
    # A tag can be moved to other code; a commit can't.
    assert all(len(step["uses"].split("@")[1]) == 40 for step in steps if "uses" in step)
