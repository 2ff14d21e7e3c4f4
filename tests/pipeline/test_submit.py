"""`unet submit` and `unet attach`: what is refused before anything is sent, and whole commands against a real head."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.ray_head import RayHead, ray_head, why_not
from benchmarks.tracking_server import TrackingServer
from benchmarks.workspace import commit, make_workspace, run, weights_of
from pipeline import tracking
from pipeline.cli import main
from pipeline.job_road import versions
from pipeline.jobs import Job
from pipeline.placement import read_placement
from pipeline.submit import (
    COMMAND_TAG,
    TREE_TAG,
    check_ray,
    check_remote,
    check_words,
    choose_variables,
    find_same_job,
)
from unet_core.errors import RecipeError, StorageError, TrainingError

SECRET = "of-no-use-elsewhere"


def test_placement_is_passed_on_and_what_names_this_machine_is_not(caplog: pytest.LogCaptureFixture) -> None:
    given = {
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
        "UNET_WORKERS": "2-4",
        "UNET_CHECKPOINTS": "s3://bucket/training",
        "UNET_SHARDS": "file:///srv/shards",
    }
    with caplog.at_level("INFO"):
        assert choose_variables(given) == {"UNET_WORKERS": "2-4", "UNET_CHECKPOINTS": "s3://bucket/training"}
    assert "MLFLOW_TRACKING_URI stays here, as it names this machine; the cluster's own is used" in caplog.text
    assert choose_variables({"MLFLOW_TRACKING_URI": "runs/of/mine"}) == {}
    server = {"MLFLOW_TRACKING_URI": "https://mlflow.example:5000"}
    assert choose_variables(server) == server


@pytest.mark.parametrize("value", [f"https://me:{SECRET}@mlflow.example", f"s3://bucket/shards?signature={SECRET}"])
def test_a_password_in_a_variable_is_refused_and_not_shown(value: str) -> None:
    with pytest.raises(RecipeError) as caught:
        choose_variables({"MLFLOW_TRACKING_URI": value})
    assert SECRET not in str(caught.value)
    assert str(caught.value).startswith(
        "environment variable MLFLOW_TRACKING_URI holds a password or a signature, and a job's variables can be read by "
    )


def test_a_password_in_the_command_is_refused_and_not_shown() -> None:
    check_words(["predict", "s3://bucket/images", "--out", "reports/masks"])
    with pytest.raises(RecipeError) as caught:
        check_words(["init", "--source", f"s3://me:{SECRET}@bucket/images"])
    assert str(caught.value) == (
        "a word of the command holds a password or a signature, which all who list jobs could read: "
        "s3://***@bucket/images. Give it to the cluster's own environment."
    )


def test_a_job_of_the_same_tree_is_found_again_and_one_that_failed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(name: str, status: str, tree: str = "tree") -> Job:
        metadata = {COMMAND_TAG: "report", TREE_TAG: tree}
        return Job(name=name, status=status, exit_code=None, message="", began=0, ended=None, metadata=metadata)

    monkeypatch.chdir(tmp_path)
    tags = {COMMAND_TAG: "report", TREE_TAG: "tree"}
    newest_first = [job("new", "FAILED"), job("other", "RUNNING", "another tree"), job("old", "RUNNING")]
    assert find_same_job(read_placement(), newest_first, tags) == "old"
    assert capsys.readouterr().out == "job new did the same and failed: `unet attach new` shows its log\n"
    assert find_same_job(read_placement(), newest_first, {**tags, TREE_TAG: "a third"}) is None


def test_another_ray_is_refused() -> None:
    check_ray("2.60.0", "2.60.0")
    with pytest.raises(TrainingError) as caught:
        check_ray("2.60.0", "2.59.1")
    assert str(caught.value) == (
        "the cluster has Ray 2.59.1, this machine 2.60.0. Install the same on both (constraints.txt), or build the "
        "cluster's image anew."
    )


def remote(url: str) -> dict[str, dict[str, str]]:
    return {"core": {"remote": "store"}, 'remote "store"': {"url": url}}


@pytest.mark.parametrize("url", ["s3://bucket/dvc", "/srv/dvc"])
def test_a_remote_that_the_cluster_sees_is_accepted(url: str) -> None:
    assert check_remote(remote(url), needs_remote=True)


def test_without_a_remote_only_a_command_runs() -> None:
    assert not check_remote({}, needs_remote=False)
    with pytest.raises(
        StorageError, match=r"^no default DVC remote in \.dvc/config, .*`dvc remote add --default store"
    ):
        check_remote({}, needs_remote=True)


def test_a_remote_in_the_tree_is_refused() -> None:
    with pytest.raises(
        StorageError, match=r"^DVC's remote store is a folder of this tree, which the cluster can't see:"
    ):
        check_remote(remote("../store"), needs_remote=False)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("train", "report"), "one stage, and nothing behind it: train report. A command comes behind `--`."),
        (("--", "attach"), "runs here, and not on a cluster: unet attach. Type it without `unet submit`."),
        (("--", "retrain"), "runs here, and not on a cluster: unet retrain. Type it without `unet submit`."),
    ],
)
def test_a_wrong_command_is_refused_here(words, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["submit", *words])
    assert ended.value.code == 3
    assert capsys.readouterr().err == f"unet submit: {text}\n"


def test_a_cluster_that_is_not_there_is_named(tree, capsys: pytest.CaptureFixture[str], committed) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["submit", "--address", "http://127.0.0.1:9", "--", "history"])
    assert ended.value.code == 7
    text = capsys.readouterr().err
    assert text.startswith("unet submit: Ray's Jobs API can't be reached: http://127.0.0.1:9. Start the cluster")
    assert text.count("\n") == 1


def test_an_absolute_source_in_the_tree_is_refused(tree, capsys: pytest.CaptureFixture[str], committed) -> None:
    tree.write_recipe(ingest={"source": f"{tree.root}/raw"})
    with pytest.raises(SystemExit) as ended:
        main(["submit", "--address", "http://127.0.0.1:9"])
    assert ended.value.code == 3
    assert capsys.readouterr().err == (
        f"unet submit: the source is an absolute path into the tree: params.yaml: ingest.source: {tree.root}/raw. The "
        "cluster has the tree elsewhere, and would write another dvc.lock. Write it relative to the tree: raw.\n"
    )


class HeadThatFallsSilent(BaseHTTPRequestHandler):
    """Knows of every package, and goes away when it is given a job."""

    seconds = 0.0
    was_asked = threading.Event()

    def do_GET(self) -> None:
        text = json.dumps({"version": "4", "ray_version": versions()["ray"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self) -> None:
        type(self).was_asked.set()
        time.sleep(self.seconds)
        self.close_connection = True

    def log_message(self, *_) -> None:
        pass


def test_a_job_whose_beginning_was_not_confirmed_is_known_here(
    tree, capsys: pytest.CaptureFixture[str], committed
) -> None:
    (tree.root / "dvc.yaml").write_text("stages: {}\n")
    known = tree.root / ".unet" / "jobs.jsonl"
    known.parent.mkdir()
    # Of an older version, for all to read.
    known.touch(mode=0o644)
    with HTTPServer(("127.0.0.1", 0), HeadThatFallsSilent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(SystemExit) as ended:
            main(["submit", "--address", address, "--", "history"])
        server.shutdown()
    assert ended.value.code == 7
    assert known.stat().st_mode & 0o077 == 0
    told = json.loads(known.read_text())
    assert told["address"] == address
    printed = capsys.readouterr()
    assert printed.out == "new files, which git does not track, go along: dvc.yaml\n"
    assert printed.err.endswith(
        f"Whether the job began is not known: before you submit again, ask `unet attach {told['job']}`.\n"
    )


class HeadThatTakesItsTime(HeadThatFallsSilent):
    seconds = 60.0
    was_asked = threading.Event()


def test_interrupted_while_it_is_submitted_a_job_is_named(tree, committed) -> None:
    (tree.root / "dvc.yaml").write_text("stages: {}\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), HeadThatTakesItsTime) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = ["submit", "--address", f"http://127.0.0.1:{server.server_port}", "--", "history"]
        process = subprocess.Popen([sys.executable, "-m", "pipeline.cli", *words], stderr=subprocess.PIPE, text=True)
        assert HeadThatTakesItsTime.was_asked.wait(60)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
        server.shutdown()
    assert process.returncode == 130
    (line,) = (tree.root / ".unet" / "jobs.jsonl").read_text().splitlines()
    job = json.loads(line)["job"]
    assert told.endswith(
        f"submit: Whether the job began is not known: before you submit again, ask `unet attach {job}`.\n"
        "unet submit: interrupted\n"
    )


def test_a_typo_in_any_section_is_told_before_anything_is_sent(
    tree, capsys: pytest.CaptureFixture[str], committed
) -> None:
    tree.write_recipe(promote={"confidense": 0.9})
    (tree.root / ".dvc" / "config").write_text("[core]\n    remote = store\n['remote \"store\"']\n    url = /nowhere\n")
    (tree.root / "dvc.yaml").write_text("stages: {}\n")
    with HTTPServer(("127.0.0.1", 0), HeadThatFallsSilent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(SystemExit) as ended:
            main(["submit", "--address", f"http://127.0.0.1:{server.server_port}"])
        server.shutdown()
    assert ended.value.code == RecipeError.exit_code
    assert "unknown key: params.yaml: promote: confidense. Did you mean confidence?" in capsys.readouterr().err
    assert not (tree.root / ".unet" / "jobs.jsonl").exists()


@pytest.mark.slow
def test_a_store_that_cannot_be_reached_is_told_with_dvcs_reason(
    dvc_tree, dvc, committed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (dvc_tree.root / "batch").write_text("of pictures\n")
    (dvc_tree.root / "dvc.yaml").write_text("stages: {}\n")
    dvc("add", "batch")
    dvc("remote", "add", "--default", "store", "s3://bucket/dvc")
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with HTTPServer(("127.0.0.1", 0), HeadThatFallsSilent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(SystemExit) as ended:
            main(["submit", "--address", f"http://127.0.0.1:{server.server_port}"])
        server.shutdown()
    assert ended.value.code == 7
    assert capsys.readouterr().err == (
        "unet submit: data can't be pushed for the cluster: unexpected error - Could not connect to the endpoint URL: "
        '"http://127.0.0.1:9/bucket". Mend it, so that `dvc push` works.\n'
    )


@pytest.mark.parametrize(
    ("words", "port"),
    [(("old",), 7), (("new",), 9), ((), 9), (("moved",), 11), (("elsewhere",), 13), (("old", "--address"), 13)],
)
def test_a_job_is_asked_for_where_it_was_submitted(
    tree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], port: int
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", at(13))
    known = [("moved", 1), ("old", 7), ("moved", 11), ("new", 9)]
    (tree.root / ".unet").mkdir()
    lines = [json.dumps({"job": job, "address": at(there)}) for job, there in known]
    (tree.root / ".unet" / "jobs.jsonl").write_text("\n".join([*lines[:2], '{"job": "ol', *lines[2:], ""]))
    with pytest.raises(SystemExit) as ended:
        main(["attach", *words, *([at(port)] if "--address" in words else [])])
    assert ended.value.code == 7
    assert f"Ray's Jobs API can't be reached: {at(port)}. " in capsys.readouterr().err


def at(port: int) -> str:
    """Where nobody listens."""
    return f"http://127.0.0.1:{port}"


def test_a_job_after_a_line_that_a_full_disk_cut_is_known(tree, capsys: pytest.CaptureFixture[str], committed) -> None:
    (tree.root / "dvc.yaml").write_text("stages: {}\n")
    known = tree.root / ".unet" / "jobs.jsonl"
    known.parent.mkdir()
    known.write_text('{"job": "unet-1", "addr')
    with HTTPServer(("127.0.0.1", 0), HeadThatFallsSilent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for _ in range(2):
            with pytest.raises(SystemExit):
                main(["submit", "--address", f"http://127.0.0.1:{server.server_port}", "--", "history"])
        server.shutdown()
    cut, *whole = known.read_text().splitlines()
    assert cut == '{"job": "unet-1", "addr'
    told = re.findall(r"ask `unet attach (\S+)`", capsys.readouterr().err)
    assert [json.loads(line)["job"] for line in whole] == told
    assert len(told) == 2


def test_without_a_job_there_is_nothing_to_attach_to(tree, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["attach"])
    assert ended.value.code == 7
    assert capsys.readouterr().err == (
        "unet attach: no job was submitted from this tree. Name one of those that `unet status` lists.\n"
    )


@pytest.fixture
def committed(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree as a repository."""
    tree.write_recipe()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tree.root.parent))
    (tree.root / ".dvc").mkdir(exist_ok=True)
    (tree.root / ".dvc" / "config").write_text("[core]\n    analytics = false\n", encoding="utf-8")
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for words in (("init", "--quiet"), ("add", "."), (*identity, "commit", "--quiet", "-m", "first")):
        subprocess.run(["git", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    """A cluster whose own environment has a store's credentials."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with ray_head(environment={"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": SECRET}) as running:
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working tree with a DVC remote and a source outside."""
    scratch = tmp_path_factory.mktemp("submit")
    folder = make_workspace(scratch / "home", "shapes", {"ingest.source": str(scratch / "shapes")})
    run(folder, "unet", "shapes", str(scratch / "shapes"), "--count", "12")
    run(folder, "unet", "add")
    run(folder, "dvc", "remote", "add", "--default", "store", str(scratch / "remote"))
    return folder


def unet(
    home: Path, head: RayHead, *words: str, terminal: int | None = None, **environment: str
) -> subprocess.Popen[str]:
    """Start a command whose user has secrets too; with a terminal, which it is the foreground of."""
    scripts = str(Path(sys.executable).parent)
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "UNET_", "RAY_"))}
    own = {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "MLFLOW_TRACKING_PASSWORD": SECRET}
    return subprocess.Popen(
        ["unet", *words] if terminal is None else ["setsid", "--ctty", "--wait", "unet", *words],
        cwd=home,
        env={**outside, **own, **head.environment(), **environment},
        stdin=subprocess.DEVNULL if terminal is None else terminal,
        stdout=subprocess.PIPE if terminal is None else terminal,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ask(head: RayHead, path: str, body: dict[str, object] | None = None) -> str:
    headers = {"Authorization": f"Bearer {head.token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{head.address}{path}", data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


@pytest.mark.slow
def test_a_command_runs_on_the_cluster_and_no_secret_is_told(home: Path, head: RayHead) -> None:
    process = unet(home, head, "submit", "--", "shapes", "data/raw/few", "--count", "2", UNET_WORKERS="2")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "unet shapes data/raw/few --count 2; commit " in output
    job = next(line for line in output.splitlines() if " submitted: " in line).split()[1]
    assert f"job {job} succeeded after " in output
    told = ask(head, "/api/jobs/")
    (about,) = (entry for entry in json.loads(told) if entry["submission_id"] == job)
    assert about["metadata"]["unet.command"] == "unet shapes data/raw/few --count 2"
    assert len(about["metadata"]["git.tree"]) == len(about["metadata"]["git.commit"]) == 40
    assert about["entrypoint"] == "python -m pipeline.job_road"
    assert about["runtime_env"]["env_vars"]["UNET_WORKERS"] == "2"
    for text in (told, ask(head, f"/api/jobs/{job}/logs"), output):
        assert SECRET not in text
        assert head.token not in text


@pytest.mark.slow
def test_stages_run_on_the_cluster_and_dvc_knows_their_results_here(home: Path, head: RayHead) -> None:
    process = unet(home, head, "submit", "split")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "::result" not in output
    assert "taken home: dvc.lock, metrics/ingest.json, metrics/split.json, metrics/validate.json\n" in output
    run(home, "dvc", "pull", "--allow-missing")
    assert "Running stage" not in run(home, "dvc", "repro", "split")
    # Nothing is new: nothing comes home.
    process = unet(home, head, "attach")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "all results are here already\n" in output


@pytest.mark.slow
def test_the_exit_code_is_the_jobs_also_later(home: Path, head: RayHead) -> None:
    process = unet(home, head, "submit", "--", "predict", "nowhere.png", "--out", "reports/masks")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 4, output
    assert "\nunet predict: no images: nowhere.png. " in output
    assert "taken home" not in output
    process = unet(home, head, "attach")
    again, _ = process.communicate(timeout=60)
    assert process.returncode == 4
    assert [line for line in again.splitlines() if line in output] == again.splitlines()


@pytest.mark.slow
def test_an_interrupted_command_leaves_the_job_running_and_says_how_to_see_it_again(home: Path, head: RayHead) -> None:
    process = unet(home, head, "submit", "--", "shapes", "data/raw/many", "--count", "400")
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("job unet-") and "; commit " in line:
            break
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    job = seen[-1].split()[1].rstrip(":")
    assert f"job {job} goes on. To see it again: unet attach {job}\n" in output
    process = unet(home, head, "attach", job)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert f"job {job} succeeded after " in output


@pytest.mark.slow
def test_a_job_that_is_not_there_is_told_in_a_sentence_and_the_head_logs_no_token(home: Path, head: RayHead) -> None:
    process = unet(home, head, "attach", "nojob")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 7
    assert output == f"unet attach: no such job: {head.address}: nojob. `unet status` lists them.\n"
    logs = [path for path in logs_of(head).rglob("*") if path.is_file()]
    assert any(path.name.startswith("dashboard") for path in logs)
    assert [path.name for path in logs if head.token.encode() in path.read_bytes()] == []


def logs_of(head: RayHead) -> Path:
    """Where the head's processes write their logs."""
    (given,) = (word for word in head.process.args if str(word).startswith("--temp-dir="))
    return Path(given.partition("=")[2], "session_latest", "logs")


@pytest.mark.slow
@pytest.mark.parametrize("token", ["wrong" * 8, ""])
def test_a_wrong_token_is_refused_in_a_sentence(home: Path, head: RayHead, token: str, tmp_path: Path) -> None:
    process = unet(home, head, "submit", "--", "history", RAY_AUTH_TOKEN=token, HOME=str(tmp_path))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 7
    assert output == (
        f"unet submit: the cluster refuses the token, or wants one: {head.address}. Set RAY_AUTH_TOKEN to the cluster's "
        "token, or write it to ~/.ray/auth_token.\n"
    )


@pytest.mark.slow
def test_on_a_terminal_the_user_is_asked_whether_to_stop_the_job(home: Path, head: RayHead) -> None:
    ours, theirs = pty.openpty()
    process = unet(home, head, "submit", "--", "shapes", "data/raw/more", "--count", "4000", terminal=theirs)
    os.close(theirs)
    output = read_until(ours, "; commit ")
    os.write(ours, b"\x03")
    output += read_until(ours, "without you] ")
    os.write(ours, b"y\n")
    output += read_until(ours, None)
    assert process.wait(timeout=60) == 130
    job = re.search(r"job (unet-\S+) submitted", output)[1]  # type: ignore[index]
    assert f"Stop job {job}? [y/N, Enter: it goes on without you] " in output
    assert f"job {job} stopped after " in output


def read_until(terminal: int, text: str | None) -> str:
    """What a terminal shows, up to a text, or to its end."""
    shown = ""
    deadline = time.monotonic() + 90
    while text is None or text not in shown:
        assert time.monotonic() < deadline, shown
        if select.select([terminal], [], [], 1)[0]:
            try:
                piece = os.read(terminal, 4096)
            except OSError:
                # So Linux tells of the other end's close.
                return shown
            shown += piece.decode(errors="replace")
    return shown


@pytest.mark.slow
def test_status_shows_cluster_and_jobs_and_tells_of_what_is_away(home: Path, head: RayHead) -> None:
    process = unet(home, head, "status", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = output.splitlines()
    assert lines[0].startswith("cluster   Ray 2.")
    assert lines[0].endswith(f" at {head.address}: 1 host")
    assert lines[1].strip().startswith("127.0.0.2 (head): 2 of 2 cores free")
    assert any("unet shapes data/raw/few --count 2" in line for line in lines)
    assert any(line.startswith("runs      tracking server can't be reached: http://127.0.0.1:9") for line in lines)
    assert lines[-1] == "champion  not known, for the same reason"


@pytest.mark.slow
def test_a_log_that_the_head_cannot_give_is_no_success(home: Path, head: RayHead) -> None:
    # Not one of ours: it has no last line.
    ask(head, "/api/jobs/", {"entrypoint": "true", "submission_id": "by-hand"})
    process = unet(home, head, "attach", "by-hand")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    # One byte that is no UTF-8, and Ray gives nothing at all of the log.
    body = {
        "entrypoint": "printf 'caf\\351\\n::result end\\n'",
        "submission_id": "unet-latin",
        "metadata": {COMMAND_TAG: "unet history"},
    }
    ask(head, "/api/jobs/", body)
    process = unet(home, head, "attach", "unet-latin")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 7, output
    assert "job unet-latin succeeded after " in output
    assert output.endswith(
        "unet attach: the job's log, by which its results come, did not come whole: unet-latin. Try `unet attach "
        "unet-latin`; where the cluster has lost the log, submit again.\n"
    )


@pytest.mark.slow
@pytest.mark.chaos
def test_the_whole_road_there_gives_the_weights_and_the_lock_of_a_run_here(tmp_path: Path) -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    tiny = {"model.width": 4, "model.depth": 2, "train.epochs": 2, "promote.min_groups": 1}
    home = make_workspace(tmp_path / "home", "shapes", {**tiny, "ingest.source": str(tmp_path / "shapes")})
    run(home, "unet", "shapes", str(tmp_path / "shapes"), "--count", "60")
    run(home, "unet", "add")
    run(home, "dvc", "remote", "add", "--default", "store", str(tmp_path / "remote"))
    commit(home, "data")
    here = shutil.copytree(home, tmp_path / "here")
    run(here, "dvc", "repro")
    server = TrackingServer(tmp_path)
    server.start()
    try:
        client = server.wait()
        with ray_head(environment={"MLFLOW_TRACKING_URI": server.uri}) as head:
            process = unet(home, head, "submit")
            output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        assert "unet version 1 not promoted: " in output
        run(home, "dvc", "pull")
        assert weights_of(home) == weights_of(here)
        assert (home / "dvc.lock").read_bytes() == (here / "dvc.lock").read_bytes()
        commit_hash = run(home, "git", "rev-parse", "HEAD").strip()
        version = tracking.version_by_alias(client, "unet", tracking.CHALLENGER)
        assert version is not None
        assert version.tags["git.commit"] == commit_hash
        assert version.tags["lineage.recorded_at"] == "training"
        names = run(home, "git", "status", "--porcelain").split()[1::2]
        assert names == ["dvc.lock", "metrics/", "models/"]
    finally:
        server.kill()
