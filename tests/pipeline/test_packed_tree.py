"""What `unet submit` sends, and what it never sends."""

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from pipeline.packed_tree import MAX_FILE_BYTES, find_contents, hash_tree, source_in_tree, write_zip
from unet_core.errors import RecipeError, StorageError

GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")


def git(root: Path, *words: str) -> str:
    return subprocess.run([*GIT, *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def write(root: Path, *names: str, text: str = "x\n") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project, committed."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    write(tmp_path, "pipeline/cli.py", "params.yaml", "dvc.yaml", "metrics/train.json", "run.sh")
    write(tmp_path, ".dvc/config", text="[core]\n    remote = store\n['remote \"store\"']\n    url = s3://bucket/dvc\n")
    write(tmp_path, ".gitignore", text="/data/\n/.venv/\n.env\n")
    (tmp_path / "run.sh").chmod(0o755)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def names_of(root: Path, source: str = "data/raw") -> set[str]:
    return set(find_contents(root, source=source).names)


PROJECT = {
    *(".dvc/config", ".gitignore", "dvc.yaml", "metrics/train.json", "params.yaml", "pipeline/cli.py", "run.sh"),
}


def test_what_git_tracks_is_sent(root: Path) -> None:
    assert names_of(root) == PROJECT


def test_new_files_are_sent_unless_git_ignores_them(root: Path) -> None:
    write(root, "pipeline/new.py", ".venv/lib/torch.py", ".env", "data/shards/index.json")
    assert names_of(root) == {*PROJECT, "pipeline/new.py"}


def test_new_files_are_told_apart_from_those_that_git_tracks(root: Path) -> None:
    assert find_contents(root, source="data/raw").new == ()
    write(root, "pipeline/staged.py")
    git(root, "add", ".")
    write(root, "z.txt", "pipeline/new.py", ".env", "data/raw/a.png", "params.yaml", text="y\n")
    found = find_contents(root, source="data/raw")
    assert found.new == ("pipeline/new.py", "z.txt")
    assert set(found.names) == {*PROJECT, "pipeline/staged.py", *found.new}


def test_a_file_that_is_gone_is_not_sent(root: Path) -> None:
    (root / "pipeline" / "cli.py").unlink()
    assert names_of(root) == PROJECT - {"pipeline/cli.py"}


def test_data_stay_here_and_are_named_but_what_tells_dvc_of_them_goes(root: Path) -> None:
    write(root, "raw/images/a.png", "raw/masks/a.png", "raw/images/.gitignore", "raw/video.dvc")
    write(root, "arrivals/raw.jsonl.dvc")
    git(root, "add", ".")
    found = find_contents(root, source="./raw")
    assert set(found.names) == {*PROJECT, "raw/images/.gitignore", "raw/video.dvc", "arrivals/raw.jsonl.dvc"}
    assert found.data == ("raw/images/a.png", "raw/masks/a.png")


@pytest.mark.parametrize("source", ["s3://bucket/raw", "/srv/raw", "../raw", "."])
def test_a_source_elsewhere_leaves_nothing_out(root: Path, source: str) -> None:
    assert find_contents(root, source=source).data == ()


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ("raw", "raw"),
        ("./data/../raw/", "raw"),
        (".", "."),
        ("../raw", None),
        ("/srv/raw", None),
        ("s3://bucket/raw", None),
    ],
)
def test_one_rule_says_whether_the_source_lies_in_the_tree(root: Path, source: str, folder: str | None) -> None:
    assert source_in_tree(root, source) == folder


def test_an_absolute_path_into_the_tree_is_refused(root: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        find_contents(root, source=f"{root}/data/raw")
    assert str(caught.value) == (
        f"the source is an absolute path into the tree: params.yaml: ingest.source: {root}/data/raw. The cluster has the "
        "tree elsewhere, and would write another dvc.lock. Write it relative to the tree: data/raw."
    )


def test_large_data_are_no_hindrance(root: Path) -> None:
    write(root, "raw/images/a.png")
    os.truncate(root / "raw/images/a.png", MAX_FILE_BYTES + 1)
    assert names_of(root, "raw") == PROJECT


@pytest.mark.parametrize(
    "name",
    [
        *(".env.local", "infra/key.pem", "server.key", "credentials", "aws/credentials.csv", ".dvc/config.local"),
        *("my-credentials.json", "secrets.yaml", "id_rsa", ".netrc", "deploy/terraform.tfvars", "Key.PEM"),
        *(".kube/config", "secrets.py", ".git-credentials"),
    ],
)
def test_a_secret_is_refused_by_name(root: Path, name: str) -> None:
    write(root, name)
    with pytest.raises(StorageError) as caught:
        names_of(root)
    assert str(caught.value) == (
        f"a secret would be sent: {name}. Let git ignore it (and remove it from the repository), or rename it if it holds none; the cluster has its own "
        "credentials, as docs/submit.md tells."
    )


@pytest.mark.parametrize("name", [".env.example", "tests/test_credentials.py", "docs/secrets.md", "pipeline/keys.py"])
def test_what_is_about_secrets_is_sent(root: Path, name: str) -> None:
    write(root, name)
    assert name in names_of(root)


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("secret_access_key = 12345", "secret_access_key"),
        ("password = 12345", "password"),
        ("url = ssh://me:12345@host/dvc", "url"),
        ("url = https://host/dvc?signature=12345", "url"),
    ],
)
def test_a_secret_in_dvcs_config_is_refused_and_not_shown(root: Path, line: str, option: str) -> None:
    write(root, ".dvc/config", text=f"['remote \"store\"']\n    {line}\n")
    with pytest.raises(StorageError) as caught:
        names_of(root)
    assert str(caught.value) == (
        f'a secret would be sent: .dvc/config: remote "store": {option}. Move it to .dvc/config.local (`dvc remote '
        "modify --local`); the cluster has its own credentials, as docs/submit.md tells."
    )


def test_a_question_for_a_password_and_a_users_name_are_no_secrets(root: Path) -> None:
    lines = "['remote \"store\"']\n    url = ssh://me@host/dvc\n    ask_password = true\n"
    write(root, ".dvc/config", text=lines)
    assert names_of(root) == PROJECT


def test_a_large_file_is_refused_by_name(root: Path) -> None:
    write(root, "notes/film.mp4")
    os.truncate(root / "notes/film.mp4", 7 << 20)
    with pytest.raises(StorageError) as caught:
        names_of(root)
    assert str(caught.value) == (
        "too large to be source: notes/film.mp4: 7 MB, 5 MB are allowed. Give it to DVC (`dvc add`), or let git ignore it."
    )


def test_a_link_is_refused(root: Path) -> None:
    (root / "here").symlink_to(root / "params.yaml")
    with pytest.raises(StorageError, match=r"^a link can't be sent: here\. Put the file itself there"):
        names_of(root)


def test_a_repository_inside_is_refused(root: Path) -> None:
    write(root, "inner/file.py")
    git(root / "inner", "init", "--quiet")
    git(root / "inner", "add", ".")
    git(root / "inner", "commit", "--quiet", "-m", "first")
    with pytest.raises(StorageError, match=r"^not a file: inner/: a repository inside this one can't be sent"):
        names_of(root)


def test_a_name_that_ray_would_leave_out_is_refused(root: Path) -> None:
    write(root, "a\\b.py")
    with pytest.raises(StorageError, match=r"^a name that can't be sent: 'a\\\\b.py'\. Rename the file\.$"):
        names_of(root)


def test_outside_git_nothing_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(StorageError, match=rf"^git can't read the working tree: {tmp_path}: .*Run `git init`"):
        names_of(tmp_path)


def test_without_dvc_nothing_is_sent(root: Path) -> None:
    (root / ".dvc" / "config").unlink()
    with pytest.raises(StorageError, match=r"^no \.dvc/config: the cluster gets data through DVC\. Run `dvc init`"):
        names_of(root)


def test_equal_trees_are_equal_bytes_whatever_the_time(root: Path, tmp_path: Path) -> None:
    names = find_contents(root, source="raw").names
    write_zip(root, names, tmp_path / "one.zip", submitted=b"{}")
    os.utime(root / "params.yaml", (1, 1))
    (root / "dvc.yaml").chmod(0o600)
    write_zip(root, names, tmp_path / "two.zip", submitted=b"{}")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as packed:
        assert packed.namelist() == [*sorted(PROJECT), ".unet/submitted.json"]
        assert packed.read(".unet/submitted.json") == b"{}"
        modes = {info.filename: info.external_attr >> 16 & 0o777 for info in packed.infolist()}
    assert (modes["run.sh"], modes["params.yaml"]) == (0o755, 0o644)


def test_too_much_is_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.packed_tree.MAX_ZIP_BYTES", 100)
    with pytest.raises(StorageError, match=r"^the working tree is too large to send: 0 MB, 0 MB are allowed\."):
        write_zip(root, find_contents(root, source="raw").names, tmp_path / "one.zip", submitted=b"{}")


def test_the_hash_of_a_clean_tree_is_gits_and_git_is_left_as_it_was(root: Path) -> None:
    names = find_contents(root, source="raw").names
    assert hash_tree(root, names) == git(root, "rev-parse", "HEAD^{tree}")
    write(root, "pipeline/new.py")
    changed = hash_tree(root, find_contents(root, source="raw").names)
    assert changed != git(root, "rev-parse", "HEAD^{tree}")
    assert git(root, "status", "--porcelain") == "?? pipeline/new.py"
    assert subprocess.run(["git", "cat-file", "-e", changed], cwd=root, check=False, capture_output=True).returncode


def test_a_tree_below_the_repositorys_root_has_the_same_hash(root: Path, tmp_path: Path) -> None:
    alone = hash_tree(root, find_contents(root, source="raw").names)
    outer = tmp_path / "outer"
    inner = outer / "projects" / "cells"
    for name in PROJECT:
        write(inner, name, text=(root / name).read_text())
    (inner / "run.sh").chmod(0o755)
    git(outer, "init", "--quiet")
    write(outer, "of-others.txt")
    git(outer, "add", ".")
    git(outer, "commit", "--quiet", "-m", "first")
    found = find_contents(inner, source="raw").names
    assert set(found) == PROJECT
    assert hash_tree(inner, found) == alone


def test_this_repository_is_small(repository: Path, tmp_path: Path) -> None:
    write_zip(
        repository, find_contents(repository, source="data/raw/shapes").names, tmp_path / "one.zip", submitted=b""
    )
    assert (tmp_path / "one.zip").stat().st_size < 5e6
