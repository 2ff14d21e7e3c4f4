"""infra/Dockerfile: what is in the image, and what is not."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "infra" / "Dockerfile").read_text(encoding="utf-8")
TAKEN = [
    line[1:]
    for line in (ROOT / "infra" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    if line.startswith("!")
]


def is_taken(path: str) -> bool:
    return any(fnmatch(path, pattern.replace("**", "*")) for pattern in TAKEN)


def test_the_image_has_the_code_and_all_that_its_build_copies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["setuptools"]["packages"]
    copied = re.findall(r"^COPY (?!-)(.*) \./$", DOCKERFILE, flags=re.MULTILINE)[0].split()
    modules = [f"{package.replace('.', '/')}/{name}.py" for package in packages for name in ("__init__", "any")]
    assert all(is_taken(path) for path in [*copied, *modules, "dvc.yaml", "infra/mlflow_server.py"])
    # The first layer installs the packages in place, before their code is there.
    made = re.search(r"mkdir -p (.*?) &&", DOCKERFILE)
    assert made is not None
    assert {part for path in made[1].split() for part in (path, path.split("/")[0])} == {
        package.replace(".", "/") for package in packages
    }


def test_the_image_has_no_data_no_history_and_no_secrets() -> None:
    away = (".git/config", ".dvc/config", ".dvc/config.local", ".env", "infra/.env", "mlflow.db", "data/raw/a.png")
    assert not [path for path in away if is_taken(path)]
    assert (ROOT / "infra" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()[1] == "*"


def test_it_runs_as_a_user_with_the_pinned_versions_of_a_build_that_make_knows() -> None:
    instructions = [line for line in DOCKERFILE.splitlines() if line and not line.startswith(("#", " "))]
    users = [line for line in instructions if line.startswith("USER")]
    assert users == ["USER ${UID}"]
    assert instructions.index("ARG UID=1000") < instructions.index(users[0])
    assert "--constraint constraints.txt" in DOCKERFILE
    compose = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text(encoding="utf-8"))
    assert set(compose["x-image"]["build"]["args"]) == set(re.findall(r"^ARG (\w+)", DOCKERFILE, flags=re.MULTILINE))
    # Exact versions of everything that is not ours.
    images = re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE)
    images += [service["image"] for service in compose["services"].values() if "build" not in service]
    assert all(re.search(r":\d+(\.\d+)+(-\w+)*$", image) for image in images)
