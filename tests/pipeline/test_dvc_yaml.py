"""dvc.yaml against the code: a stage that does not name what decides its result would be called fresh wrongly."""

import ast
import shlex
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from pipeline.cli import STAGES as COMMANDS
from pipeline.params import SECTIONS

REPOSITORY = Path(__file__).resolve().parents[2]
ROAD = ("ingest", "validate", "split", "shard", "train", "register", "evaluate", "report")
STAGES: dict[str, Any] = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
#: The doors, placement, memory, logging and MLflow's pages: they change no result. Their own imports do count.
LEFT_OUT = {
    f"pipeline/{name}.py"
    for name in (
        *("params", "placement", "storage", "cluster", "elastic", "parallel", "command", "memory", "progress"),
        *("git_process", "public_text"),
        *("tracking", "append_log", "fetched_model", "registration", "training_run", "model_page"),
    )
}
#: One refuses a recipe or does nothing; the other decides what of a dirty tree people may read, and not what trains.
LEFT_OUT |= {"unet_core/typed.py", "pipeline/secret_files.py"}
#: Sections that only commands read.
OF_COMMANDS = {"promote"}


def imported(path: str) -> Iterator[str]:
    """Files of ours that a file imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import, which this test does not follow"
            assert node.module is not None
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            file = name.replace(".", "/") + ".py"
            if name.partition(".")[0] in ("pipeline", "unet_core") and (REPOSITORY / file).is_file():
                yield file


def closure(path: str) -> set[str]:
    found, waiting = {path}, [path]
    while waiting:
        fresh = set(imported(waiting.pop())) - found
        found |= fresh
        waiting += sorted(fresh)
    return found


def module_of(stage: str) -> str:
    return f"pipeline/stages/{stage}.py"


def sections_of(stage: str) -> set[str]:
    """Sections that the stage loads. Of another stage's module it uses parts, but never `run`."""
    found = set()
    for path in closure(module_of(stage)):
        tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
        other = path.startswith("pipeline/stages/") and path != module_of(stage)
        body = [part for part in tree.body if not (other and isinstance(part, ast.FunctionDef) and part.name == "run")]
        for node in (node for part in body for node in ast.walk(part)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "load_section":
                name = node.args[0]
                if isinstance(name, ast.Constant):
                    found.add(name.value)
    return found


def paths_of(stage: str, kind: str) -> list[str]:
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in STAGES[stage].get(kind, ())]


def outs_of(stage: str) -> list[str]:
    return [path for kind in ("outs", "metrics", "plots") for path in paths_of(stage, kind)]


def within(path: str, folder: str) -> bool:
    return path == folder or PurePosixPath(folder) in PurePosixPath(path).parents


def test_the_road_has_its_stages_in_order() -> None:
    assert tuple(STAGES) == ROAD
    assert tuple(COMMANDS) == ROAD


@pytest.mark.parametrize("stage", ROAD)
def test_a_stage_depends_on_exactly_the_modules_that_it_imports(stage: str) -> None:
    named = [path for path in paths_of(stage, "deps") if path.endswith(".py")]
    assert len(named) == len(set(named))
    assert set(named) == closure(module_of(stage)) - LEFT_OUT


def test_the_closure_finds_imports_inside_functions_and_through_doors() -> None:
    assert "pipeline/progress.py" in closure("pipeline/stages/train.py")
    # Imported inside a function of the command line.
    assert "pipeline/predict.py" in closure("pipeline/cli.py")
    # Through the door to MLflow.
    assert "unet_core/checkpoint.py" in closure("pipeline/registration.py")


def test_what_is_left_out_exists() -> None:
    assert all((REPOSITORY / path).is_file() for path in LEFT_OUT)


@pytest.mark.parametrize("stage", ROAD)
def test_a_stage_follows_exactly_the_sections_that_it_loads(stage: str) -> None:
    assert set(paths_of(stage, "params")) == sections_of(stage)


def test_every_section_is_followed_by_a_stage_or_used_by_a_command() -> None:
    recipe = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    followed = {section for stage in ROAD for section in paths_of(stage, "params")}
    assert followed | OF_COMMANDS == set(SECTIONS)
    assert not followed & OF_COMMANDS
    assert set(recipe) == set(SECTIONS)
    assert 'load_section("promote"' in (REPOSITORY / "pipeline" / "judging.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("stage", ROAD)
def test_every_dependency_is_a_file_of_the_repository_or_made_earlier(stage: str) -> None:
    earlier = [path for other in ROAD[: ROAD.index(stage)] for path in outs_of(other)]
    for path in paths_of(stage, "deps"):
        if not path.startswith("${"):
            assert path in earlier or (REPOSITORY / path).is_file(), path


def test_no_two_results_overlap() -> None:
    outs = [(stage, path) for stage in ROAD for path in outs_of(stage)]
    for number, (_, one) in enumerate(outs):
        for _, other in outs[number + 1 :]:
            assert not within(one, other), (one, other)
            assert not within(other, one), (one, other)


@pytest.mark.parametrize("stage", ROAD)
def test_the_command_gives_the_stage_every_path_that_it_takes(stage: str) -> None:
    words = shlex.split(STAGES[stage]["cmd"])
    assert words[:3] == ["unet", "stage", stage]
    tree = ast.parse((REPOSITORY / module_of(stage)).read_text(encoding="utf-8"))
    (run,) = (part for part in tree.body if isinstance(part, ast.FunctionDef) and part.name == "run")
    assert sorted(words[3::2]) == sorted(f"--{argument.arg}" for argument in run.args.kwonlyargs)


@pytest.mark.parametrize("stage", ROAD)
def test_every_path_of_the_command_is_a_result_or_a_dependency(stage: str) -> None:
    """DVC neither keeps nor follows a path that it does not know."""
    known = [*outs_of(stage), *paths_of(stage, "deps")]
    for path in shlex.split(STAGES[stage]["cmd"])[4::2]:
        assert any(within(path, other) or within(other, path) for other in known), path


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_what_computes_with_torch_follows_its_version(stage: str) -> None:
    assert "constraints.txt" in paths_of(stage, "deps")


def test_only_ingest_follows_the_source_and_all_else_the_hashes_in_the_catalog() -> None:
    assert [stage for stage in ROAD if "${ingest.source}" in paths_of(stage, "deps")] == ["ingest"]
    assert "data/catalog.parquet" in paths_of("validate", "deps")
    assert "data/accepted.parquet" in paths_of("shard", "deps")


def test_results_that_grow_stay_when_their_stage_runs_again() -> None:
    (shards,) = STAGES["shard"]["outs"]
    assert shards == {"data/shards": {"persist": True}}
    # What split compares its result with.
    assert STAGES["split"]["outs"][0] == {"data/splits.csv": {"persist": True}}
