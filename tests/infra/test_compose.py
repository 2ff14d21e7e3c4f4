"""infra/compose.yaml: nothing open, no password in it, and names and commands that exist."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from benchmarks.hosts import HEALTH_CHECKS

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "infra" / "compose.yaml").read_text(encoding="utf-8")
SERVICES = yaml.safe_load(COMPOSE)["services"]
SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|ACCESS_KEY")


def environments() -> list[tuple[str, dict[str, str]]]:
    return [(name, service.get("environment", {})) for name, service in SERVICES.items()]


def test_whatever_is_published_is_published_on_loopback() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_secret_is_asked_for_and_none_has_a_default() -> None:
    secrets = [
        value for _, variables in environments() for name, value in variables.items() if SECRET.search(name.upper())
    ]
    assert len(secrets) > 5
    asked = r"\$\{\w+:\?[^}]*\}"
    # One that may be left out is then another one that is asked for.
    assert all(re.fullmatch(rf"{asked}|\$\{{\w+:-{asked}\}}", value) for value in secrets)
    in_addresses = re.findall(r"://\w+:([^@/]+)@", COMPOSE)
    assert in_addresses == ["${POSTGRES_PASSWORD:?}"]


def test_its_variables_are_those_that_code_and_libraries_read() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "pipeline").glob("*.py"))
    code += (ROOT / "infra" / "mlflow_server.py").read_text(encoding="utf-8")
    code += (ROOT / "benchmarks" / "hosts.py").read_text(encoding="utf-8")
    code += (ROOT / "benchmarks" / "object_store.py").read_text(encoding="utf-8")
    mlflow = importlib.util.find_spec("mlflow")
    assert mlflow is not None
    assert mlflow.origin is not None
    code += Path(mlflow.origin).with_name("environment_variables.py").read_text(encoding="utf-8")
    for service, variables in environments():
        if service != "postgres":
            assert [name for name in variables if f'"{name}"' not in code] == [], service


@pytest.mark.parametrize("service", ["ray-head", "ray-worker"])
def test_ray_asks_for_a_token_and_misses_a_dead_host_soon(service: str) -> None:
    variables = SERVICES[service]["environment"]
    assert variables["RAY_AUTH_MODE"] == "token"
    assert {name: variables.get(name) for name in HEALTH_CHECKS} == HEALTH_CHECKS
    (store,) = (word for word in SERVICES[service]["command"] if word.startswith("--object-store-memory="))
    # What does not fit into shared memory, Ray keeps on a disk.
    assert SERVICES[service]["shm_size"] == "2gb"
    assert int(store.partition("=")[2]) < 2 << 30


@pytest.mark.parametrize("service", ["ray-head", "ray-worker"])
def test_ray_takes_the_command_line(service: str) -> None:
    from ray.scripts.scripts import cli

    program, command, *arguments = SERVICES[service]["command"]
    assert program == "ray"
    parsed = cli.commands[command].make_context(command, arguments).params
    assert parsed["head"] is (service == "ray-head")
    assert parsed["block"]


def test_no_container_of_ours_has_rights_that_it_does_not_need() -> None:
    ours = {name: service for name, service in SERVICES.items() if "build" in service}
    assert set(ours) == {"buckets", "mlflow", "ray-head", "ray-worker"}
    for service in ours.values():
        assert service["cap_drop"] == ["ALL"]
        # Else what a killed stage leaves stays as a zombie.
        assert service["init"] is True
    for service in SERVICES.values():
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_every_server_has_a_health_check() -> None:
    from ray.scripts.scripts import cli

    assert {name for name, service in SERVICES.items() if "healthcheck" not in service} == {"buckets"}
    for name in ("ray-head", "ray-worker"):
        test = SERVICES[name]["healthcheck"]["test"]
        assert test[:3] == ["CMD", "ray", "health-check"]
        assert cli.commands["health-check"].make_context("health-check", test[3:]).params["address"] == "ray-head:6379"


def test_who_waits_for_a_healthy_service_waits_for_one_that_has_a_check() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], (name, other)
