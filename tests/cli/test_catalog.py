"""`safegraft methods`, `plugins` and `doctor`."""

import json
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from safegraft.methods import registry

Cli = Callable[..., Any]  # the fixture `cli` of conftest.py


@pytest.fixture
def broken_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more plugin is installed, and cannot be imported."""
    found = [*registry.entry_points(group="safegraft"), EntryPoint("broken", "no_such_module", "safegraft")]
    monkeypatch.setattr(registry, "entry_points", lambda group: found)


def test_methods_come_with_the_schema_of_their_parameters(cli: Cli) -> None:
    found = {method["name"]: method for method in json.loads(cli("methods", "--json").stdout)}
    assert {"linear", "slerp", "task_arithmetic", "passthrough"} <= found.keys()
    slerp = found["slerp"]
    assert (slerp["base"], slerp["max_inputs"]) == ("required", 1)
    assert slerp["parameters"]["properties"]["t"]["type"] == "number"
    assert slerp["reference"].startswith("https://")


def test_the_list_has_a_line_for_every_method_and_modifier(cli: Cli) -> None:
    lines = cli("methods").stdout.splitlines()
    described = json.loads(cli("methods", "--json").stdout)
    assert len(described) > 45
    for one in described:
        (line,) = [line for line in lines if line.split(" ")[0] == one["name"]]
        assert line.endswith(one["summary"])


def test_show_says_everything_about_one(cli: Cli) -> None:
    for described in json.loads(cli("methods", "--json").stdout):
        if described["name"].startswith("mergekit:"):
            continue  # likewise, twenty times
        text = cli("methods", "show", described["name"]).stdout
        assert text.startswith(f"{described['name']}: {described['summary']}\n")
        assert described["reference"] in text
        for schema in (described["parameters"], described.get("input_parameters", {})):
            for name in schema.get("properties", {}):
                assert f" {name} (" in text
        assert all(role in text for role in described.get("roles", ()))
        assert all(need["statistic"] in text for need in described.get("calibration", ()))
    assert json.loads(cli("methods", "show", "slerp", "--json").stdout)["name"] == "slerp"


def test_bounds_and_defaults_are_said_in_words(cli: Cli) -> None:
    assert "t (number, at least 0, at most 1, required): " in cli("methods", "show", "slerp").stdout
    assert "normalize (boolean, default true): " in cli("methods", "show", "linear").stdout


def test_show_suggests_what_was_meant(cli: Cli) -> None:
    done = cli("methods", "show", "liner")
    assert done.returncode == 2
    assert "there is no method liner; did you mean linear" in done.stderr


def test_options_before_the_subcommand_are_not_ignored(cli: Cli) -> None:
    done = cli("methods", "--json", "show", "linear")
    assert done.returncode == 2
    assert "after `show`" in done.stderr


@pytest.mark.usefixtures("broken_plugin")
def test_a_broken_plugin_is_shown_with_its_reason(cli: Cli) -> None:
    done = cli("plugins")
    assert done.returncode == 0
    assert "BROKEN: ModuleNotFoundError: No module named 'no_such_module'" in done.stdout
    by_name = {plugin["name"]: plugin for plugin in json.loads(cli("plugins", "--json").stdout)}
    assert by_name["linear"]["error"] is None
    assert "no_such_module" in by_name["broken"]["error"]


@pytest.mark.usefixtures("broken_plugin")
def test_a_broken_plugin_is_an_error_when_asked_for(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEGRAFT_STRICT_PLUGINS", "1")
    assert cli("plugins").returncode == 1


def test_the_doctor_finds_this_machine_well(cli: Cli) -> None:
    done = cli("doctor", "--json")
    report = json.loads(done.stdout)
    failed = [finding for finding in report["findings"] if finding["level"] == "failed"]
    assert (done.returncode, report["healthy"], failed) == (0, True, [])
    subjects = {finding["subject"] for finding in report["findings"]}
    assert {"python", "torch", "cpu", "memory", "disk", "plugin", "port"} <= subjects


@pytest.mark.usefixtures("broken_plugin")
def test_the_doctor_fails_on_a_broken_plugin(cli: Cli) -> None:
    done = cli("doctor")
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("failed")]
    assert "no_such_module" in line
