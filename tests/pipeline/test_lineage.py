import json
import re
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from pipeline.lineage import code_hash, data_state, git_state, source_state
from unet_core.hashing import hash_file

GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")


def git(root: Path, *words: str) -> str:
    done = subprocess.run([*GIT, *words], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for name in ("code.py", "dvc.lock", "metrics/train.json", "models/receipt.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("old", encoding="utf-8")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def test_a_clean_tree_has_its_commit(committed: Path) -> None:
    assert git_state(committed) == {"git.commit": git(committed, "rev-parse", "HEAD"), "git.dirty": "false"}


def test_a_changed_file_makes_the_tree_dirty(committed: Path) -> None:
    (committed / "code.py").write_text("new", encoding="utf-8")
    assert git_state(committed)["git.dirty"] == "true"


def test_a_staged_file_makes_the_tree_dirty(committed: Path) -> None:
    (committed / "more.py").write_text("new", encoding="utf-8")
    git(committed, "add", "more.py")
    assert git_state(committed)["git.dirty"] == "true"


def test_a_file_that_git_does_not_know_leaves_the_tree_clean(committed: Path) -> None:
    (committed / "notes.txt").write_text("new", encoding="utf-8")
    assert git_state(committed)["git.dirty"] == "false"


def written_by_the_pipeline() -> list[str]:
    """Files in git that stages write: DVC's lock and all outs that it does not cache."""
    stages = yaml.safe_load((Path(__file__).resolve().parents[2] / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    entries = [
        entry for stage in stages.values() for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, ())
    ]
    uncached = [
        path
        for entry in entries
        if isinstance(entry, dict)
        for path, about in entry.items()
        if about.get("cache") is False
    ]
    return ["dvc.lock", *uncached]


def test_the_pipeline_writes_files_into_git() -> None:
    assert {"dvc.lock", "metrics/train.json", "models/receipt.json"} <= set(written_by_the_pipeline())


@pytest.mark.parametrize("name", written_by_the_pipeline())
def test_what_the_pipeline_writes_itself_leaves_the_tree_clean(committed: Path, name: str) -> None:
    (committed / name).write_text("new", encoding="utf-8")
    git(committed, "add", "--intent-to-add", name)
    assert git_state(committed)["git.dirty"] == "false"


def test_outside_git_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) == {}


def test_a_tree_that_was_submitted_comes_from_where_it_was_packed(committed: Path, tmp_path: Path) -> None:
    (committed / "code.py").write_text("new", encoding="utf-8")
    told = {"git": git_state(committed), "source": asdict(source_state(committed))}
    packed = tmp_path / "packed"
    (packed / ".unet").mkdir(parents=True)
    (packed / ".unet" / "submitted.json").write_text(json.dumps(told), encoding="ascii")
    assert git_state(packed) == {"git.commit": git(committed, "rev-parse", "HEAD"), "git.dirty": "true"}
    assert source_state(packed) == source_state(committed)
    assert "+new" in source_state(packed).patch


@pytest.mark.parametrize("name", [".env", "lib/secrets.yaml", "a [b]/Key.PEM", ".dvc/config"])
def test_no_secret_stands_in_the_patch_whether_it_was_written_changed_or_taken_out(
    committed: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = committed / name
    path.parent.mkdir(exist_ok=True)
    (committed / "code.py").write_text("new", encoding="utf-8")
    path.write_text("12345", encoding="utf-8")
    patches = [source_state(committed).patch]
    git(committed, "add", name)
    git(committed, "commit", "--quiet", "-m", "by mistake")
    path.write_text("67890", encoding="utf-8")
    caplog.clear()
    patches.append(source_state(committed).patch)
    assert caplog.messages == [f"lineage: {name} may hold secrets: the change stays out of the model's patch"]
    path.unlink()
    patches.append(source_state(committed).patch)
    for patch in patches:
        assert not {"12345", "67890"} & set(re.findall(r"\d{5}", patch))
        assert "+new" in patch


@pytest.mark.parametrize("setting", ["diff.relative=true", "diff.submodule=diff", "diff.noprefix=true"])
def test_no_secret_stands_in_the_patch_of_a_sub_directory_whatever_git_is_told(committed: Path, setting: str) -> None:
    git(committed, "config", *setting.split("="))
    below = committed / "project"
    below.mkdir()
    (below / "secrets.yaml").write_text("old", encoding="utf-8")
    (below / "code.py").write_text("old", encoding="utf-8")
    git(committed, "add", ".")
    git(committed, "commit", "--quiet", "-m", "second")
    (below / "secrets.yaml").write_text("12345", encoding="utf-8")
    (below / "code.py").write_text("new", encoding="utf-8")
    state = source_state(below)
    assert state.prefix == "project/"
    assert "12345" not in state.patch
    assert state.patch.startswith("diff --git a/project/code.py b/project/code.py\n")


def test_a_new_file_stands_in_the_patch_before_and_after_it_is_staged(committed: Path) -> None:
    (committed / "more.py").write_text("new", encoding="utf-8")
    before = source_state(committed).patch
    assert "+++ b/more.py" in before
    git(committed, "add", "more.py")
    assert source_state(committed).patch == before


def test_before_the_first_commit_nothing_is_known(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    assert git_state(tmp_path) == {}


def test_without_git_on_the_machine_nothing_is_known(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(committed))
    assert git_state(committed) == {}


def test_the_hash_of_code_follows_contents_and_names_of_python_files(tmp_path: Path) -> None:
    package = tmp_path / "unet_core"
    package.mkdir()
    (package / "model.py").write_text("1", encoding="utf-8")
    first = code_hash(tmp_path)
    (package / "notes.txt").write_text("1", encoding="utf-8")
    assert code_hash(tmp_path) == first
    (package / "model.py").write_text("2", encoding="utf-8")
    second = code_hash(tmp_path)
    (package / "model.py").rename(package / "network.py")
    assert len({first, second, code_hash(tmp_path)}) == 3


def test_the_state_of_data_is_the_hash_of_the_index(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{}", encoding="utf-8")
    assert data_state(tmp_path) == {"data.index_sha256": hash_file(tmp_path / "index.json")}
