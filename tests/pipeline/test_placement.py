from pathlib import Path

import pytest

from pipeline.placement import (
    DVC_REMOTE,
    Workers,
    environment_of,
    passed_on,
    read_placement,
    read_ray_token,
    with_variable,
)
from unet_core.errors import RecipeError


def test_by_default_everything_lies_in_the_working_tree(tree) -> None:
    placement = read_placement()
    assert placement.root == tree.root
    assert placement.tracking_uri == f"sqlite:///{tree.root}/mlflow.db"
    assert placement.experiment == "unet"
    assert placement.ray_address is None
    assert placement.workers is None
    assert placement.loader_threads == 1
    assert placement.timings == tree.root / ".unet" / "timings.jsonl"


def test_an_experiment_that_dvc_runs_in_a_copy_logs_to_the_users_tree(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tree.root / ".dvc" / "tmp" / "exps" / "temp1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    placement = read_placement()
    assert placement.root == copy
    assert placement.tracking_uri == f"sqlite:///{tree.root}/mlflow.db"


def test_the_environment_says_where_and_how_fast(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MLFLOW_TRACKING_URI": "http://tracking:5000",
        "MLFLOW_EXPERIMENT_NAME": "cells",
        "RAY_ADDRESS": "ray-head:6379",
        "UNET_WORKERS": "3",
        "UNET_LOADER_THREADS": "2",
        "UNET_PROCESSES": "5",
    }.items():
        monkeypatch.setenv(name, value)
    placement = read_placement()
    assert placement.tracking_uri == "http://tracking:5000"
    assert placement.experiment == "cells"
    assert placement.ray_address == "ray-head:6379"
    assert (placement.workers, placement.loader_threads, placement.processes) == (Workers(least=3, most=3), 2, 5)


def test_an_empty_variable_is_an_unset_one(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "UNET_WORKERS"):
        monkeypatch.setenv(name, "")
    placement = read_placement()
    assert placement.tracking_uri.startswith("sqlite:///")
    assert (placement.ray_address, placement.workers) == (None, None)


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "²", " "])
@pytest.mark.parametrize("name", ["UNET_LOADER_THREADS", "UNET_PROCESSES"])
def test_a_count_that_is_none_is_refused_by_name(tree, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError) as caught:
        read_placement()
    assert str(caught.value) == f"environment variable {name}: {value!r} is not a number from 1. Correct or unset it."


def test_workers_may_be_a_range(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, workers in {"1-4": Workers(least=1, most=4), "2-2": Workers(least=2, most=2)}.items():
        monkeypatch.setenv("UNET_WORKERS", value)
        assert read_placement().workers == workers


def test_shards_may_be_fetched_from_a_url(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    placement = read_placement()
    assert (placement.shards, placement.cache_dir, placement.cache_gb) == (None, "~/.cache/unet", 20.0)
    for name, value in {
        "UNET_SHARDS": "s3://bucket/shards", "UNET_CACHE": "/scratch/unet", "UNET_CACHE_GB": "0.5",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    placement = read_placement()
    assert (placement.shards, placement.cache_dir, placement.cache_gb) == ("s3://bucket/shards", "/scratch/unet", 0.5)
    monkeypatch.setenv("UNET_SHARDS", "dvc")
    assert read_placement().shards == DVC_REMOTE


def test_the_log_of_predictions_lies_in_a_folder(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    placement = read_placement()
    assert (placement.prediction_log, placement.prediction_log_gb) == (Path(".unet/predictions"), 1.0)
    monkeypatch.setenv("UNET_PREDICTION_LOG", "~/log")
    monkeypatch.setenv("UNET_PREDICTION_LOG_GB", "2.5")
    placement = read_placement()
    assert (placement.prediction_log, placement.prediction_log_gb) == (Path.home() / "log", 2.5)
    monkeypatch.setenv("UNET_PREDICTION_LOG", "s3://bucket/log")
    with pytest.raises(RecipeError) as caught:
        read_placement()
    assert str(caught.value) == (
        "environment variable UNET_PREDICTION_LOG: 's3://bucket/log' is a URL: lines are added to its files, which needs "
        "a folder. Correct or unset it."
    )


def test_a_folder_is_no_url_of_shards(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNET_SHARDS", "data/shards")
    with pytest.raises(RecipeError) as caught:
        read_placement()
    assert str(caught.value) == (
        "environment variable UNET_SHARDS: 'data/shards' is not a URL such as s3://bucket/folder, and not dvc. "
        "Correct or unset it."
    )


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "20 GB"])
def test_a_size_that_is_none_is_refused(tree, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("UNET_CACHE_GB", value)
    with pytest.raises(RecipeError) as caught:
        read_placement()
    assert str(caught.value) == (
        f"environment variable UNET_CACHE_GB: {value!r} is not a number above 0. Correct or unset it."
    )


@pytest.mark.parametrize(
    "value", ["0", "-1", "two", "1.5", "²", " ", "1-", "-", "0-4", "1-2-3", "1..4", "1 - 4", "1-x"]
)
def test_workers_that_are_neither_number_nor_range_are_refused(
    tree, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("UNET_WORKERS", value)
    with pytest.raises(RecipeError) as caught:
        read_placement()
    assert str(caught.value) == (
        f"environment variable UNET_WORKERS: {value!r} is neither a number from 1 nor a range such as 1-4. "
        "Correct or unset it."
    )


def test_a_range_that_is_the_wrong_way_round_is_refused(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNET_WORKERS", "4-1")
    with pytest.raises(RecipeError) as caught:
        read_placement()
    assert str(caught.value) == (
        "environment variable UNET_WORKERS: '4-1': the least number of workers comes first. Did you mean 1-4?"
    )


@pytest.mark.parametrize("before", [None, "1"])
def test_a_variable_is_there_for_a_while(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNET_WORKERS", raising=False)
    if before is not None:
        monkeypatch.setenv("UNET_WORKERS", before)
    with pytest.raises(KeyboardInterrupt), with_variable("UNET_WORKERS", "2"):
        assert passed_on()["UNET_WORKERS"] == "2"
        raise KeyboardInterrupt
    assert passed_on().get("UNET_WORKERS") == before


def test_no_other_module_reads_the_environment(repository: Path) -> None:
    readers = {
        path.relative_to(repository / "pipeline").as_posix()
        for path in (repository / "pipeline").rglob("*.py")
        if any(word in path.read_text(encoding="utf-8") for word in ("environ.get(", "environ[", "getenv("))
    }
    assert readers == {"placement.py"}


def test_another_working_tree_gets_neither_checkpoints_nor_shards_of_this_one(
    tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeated training begins at its beginning, and its shards may be of another time than the copy."""
    for name in ("UNET_CHECKPOINTS", "UNET_SHARDS"):
        monkeypatch.setenv(name, "s3://bucket/place")
    monkeypatch.setenv("UNET_WORKERS", "2")
    given = environment_of(tree.root, tracking_uri="")
    assert given["UNET_WORKERS"] == "2"
    assert not {"UNET_CHECKPOINTS", "UNET_SHARDS"} & set(given)


def test_checkpoints_may_lie_at_a_url(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_placement().checkpoints is None
    monkeypatch.setenv("UNET_CHECKPOINTS", "s3://bucket/training")
    assert read_placement().checkpoints == "s3://bucket/training"
    monkeypatch.setenv("UNET_CHECKPOINTS", "training")
    with pytest.raises(RecipeError, match=r"^environment variable UNET_CHECKPOINTS: 'training' is not a URL "):
        read_placement()


def test_a_job_gets_placement_but_neither_caches_nor_commands_nor_credentials(
    tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert passed_on() == {}
    for name in (
        "UNET_CACHE",
        "UNET_CACHE_GB",
        "UNET_ON_PROMOTION",
        "MLFLOW_TRACKING_PASSWORD",
        "AWS_SECRET_ACCESS_KEY",
    ):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("UNET_WORKERS", "1-4")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
    assert passed_on() == {"UNET_WORKERS": "1-4"}


def test_the_token_of_the_cluster_is_where_ray_looks_for_it(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tree.root))
    assert read_ray_token() is None
    for place, token in ((".ray/auth_token", "of the home"), ("mine", "of a path")):
        (tree.root / place).parent.mkdir(exist_ok=True)
        (tree.root / place).write_text(f"{token}\n", encoding="utf-8")
    assert read_ray_token() == "of the home"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tree.root / "mine"))
    assert read_ray_token() == "of a path"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the environment")
    assert read_ray_token() == "of the environment"


def test_the_jobs_api_is_by_default_that_of_this_machine(tree, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_placement().jobs_address == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://ray.example")
    assert read_placement().jobs_address == "https://ray.example"
