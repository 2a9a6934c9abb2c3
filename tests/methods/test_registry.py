"""Finding plugins: what an installed package brings, and what becomes of a broken one."""

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest

from safegraft.errors import PluginError
from safegraft.methods import Calibration, Granularity, MergeMethod, Plugin, Registry, Requirements, Statistic
from safegraft.methods.registry import check_class

Install = Callable[..., None]

METHOD = """
from safegraft import hookimpl
from safegraft.methods import Granularity, MergeMethod, Requirements


class Method(MergeMethod):
    name = "{name}"
    summary = "The first input."
    reference = "https://example.org/{name}"
    requires = Requirements()
    granularity = Granularity.ELEMENT

    def merge(self, inputs, base, context):
        return inputs[0].tensor


@hookimpl
def merge_methods():
    return [Method]
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution on sys.path as pip lays it out: a module and its entry point."""
    modules: list[str] = []

    def put(module: str, source: str, *, name: str | None = None, version: str = "1.0") -> None:
        folder = tmp_path / module
        metadata = folder / f"{module}-{version}.dist-info"
        metadata.mkdir(parents=True)
        (folder / f"{module}.py").write_text(source)
        modules.append(module)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n")
        (metadata / "entry_points.txt").write_text(f"[safegraft]\n{name or module} = {module}\n")
        monkeypatch.syspath_prepend(folder)

    yield put
    for module in modules:
        sys.modules.pop(module, None)


def plugin_named(name: str, registry: Registry) -> Plugin:
    (found,) = [plugin for plugin in registry.plugins if plugin.name == name]
    return found


def test_built_in_methods_come_through_the_entry_points() -> None:
    registry = Registry.discover()
    assert {"linear", "slerp", "task_arithmetic", "passthrough"} <= set(registry.names())
    assert registry.plugin_of("linear").module == "safegraft_plugins.linear"
    assert registry.plugin_of("linear").distribution == "safegraft"


def test_an_installed_plugin_is_found_with_its_version(install: Install) -> None:
    install("outsider", METHOD.format(name="first"), version="2.3")
    registry = Registry.discover()
    method = registry.get("first")
    assert method is not None
    assert method.summary == "The first input."
    assert registry.plugin_of("first") == Plugin("outsider", "outsider", "outsider", "2.3", ("first",), None)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'", id="import"),
        pytest.param("def", "SyntaxError: ", id="syntax"),
        pytest.param("1 / 0", "ZeroDivisionError: division by zero", id="code"),
        pytest.param("raise SystemExit(2)", "SystemExit: 2", id="exit"),
        pytest.param(METHOD.replace("@hookimpl", ""), "it needs a function merge_methods(), marked", id="no-hookimpl"),
        pytest.param(METHOD.replace("    return [Method]", "    pass"), "brings nothing", id="no-return"),
        pytest.param(METHOD.replace("def merge_methods", "def merge_method"), "merge_method", id="misspelt-hook"),
        pytest.param(METHOD.replace("def merge_methods()", "def merge_methods(registry)"), "registry", id="hook-args"),
        pytest.param(METHOD.replace("[Method]", "[Method()]"), "is not a subclass of safegraft", id="instance"),
        pytest.param(METHOD.replace("    name", "    title"), "Method lacks name", id="attribute"),
        pytest.param(METHOD.replace("def merge(", "def mix("), "Method does not implement merge()", id="abstract"),
        pytest.param(METHOD.replace("[Method]", "[1 / 0]"), "ZeroDivisionError", id="hook-raises"),
    ],
)
def test_a_broken_plugin_is_reported_and_the_others_work(install: Install, source: str, message: str) -> None:
    install("broken", source.format(name="never"))
    install("sound", METHOD.format(name="sound"))
    registry = Registry.discover()
    broken = plugin_named("broken", registry)
    assert broken.error is not None
    assert message in broken.error
    assert broken.methods == ()
    assert registry.get("never") is None
    assert {"linear", "sound"} <= set(registry.names())


def test_half_a_plugin_is_none(install: Install) -> None:
    install("half", METHOD.format(name="good").replace("[Method]", "[Method, int]"))
    registry = Registry.discover()
    assert registry.get("good") is None
    assert "<class 'int'> is not a subclass" in str(plugin_named("half", registry).error)


def test_a_name_taken_twice_names_both_plugins(install: Install) -> None:
    install("zeta", METHOD.format(name="linear"))
    registry = Registry.discover()
    error = str(plugin_named("zeta", registry).error)
    assert "method 'linear' is already registered by safegraft_plugins.linear (safegraft)" in error
    assert registry.plugin_of("linear").distribution == "safegraft"


def test_a_stranger_cannot_take_a_built_in_name_by_coming_first(install: Install) -> None:
    install("aaa", METHOD.format(name="linear"))
    registry = Registry.discover()
    assert registry.plugin_of("linear").distribution == "safegraft"
    assert "already registered by safegraft_plugins.linear" in str(plugin_named("aaa", registry).error)


def test_strict_mode_raises_with_every_broken_plugin(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("worse", "1 / 0")
    install("zeta", METHOD.format(name="linear"))
    monkeypatch.setenv("SAFEGRAFT_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError) as caught:
        Registry.discover()
    message = str(caught.value)
    assert "plugin worse: ZeroDivisionError" in message
    assert "plugin zeta: method 'linear' is already registered by safegraft_plugins.linear" in message


@pytest.mark.parametrize("value", ["", "0"])
def test_strict_mode_is_off_when_empty_or_zero(install: Install, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    install("worse", "1 / 0")
    monkeypatch.setenv("SAFEGRAFT_STRICT_PLUGINS", value)
    assert plugin_named("worse", Registry.discover()).error is not None


def test_strict_mode_is_content_with_sound_plugins(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("sound", METHOD.format(name="sound"))
    monkeypatch.setenv("SAFEGRAFT_STRICT_PLUGINS", "1")
    assert "sound" in Registry.discover().names()


def test_the_order_of_entry_points_changes_nothing(install: Install) -> None:
    install("alpha", METHOD.format(name="same"))
    install("beta", METHOD.format(name="same"))
    entries = list(entry_points(group="safegraft"))
    forwards, backwards = Registry.discover(entries), Registry.discover(reversed(entries))
    assert forwards.plugins == backwards.plugins
    assert forwards.plugin_of("same") == backwards.plugin_of("same")
    assert forwards.names() == backwards.names() == sorted(forwards.names())


def test_an_entry_point_without_a_distribution_is_unknown_not_fatal() -> None:
    entry = EntryPoint("loose", "safegraft_plugins.linear", "safegraft")
    (plugin,) = Registry.discover([entry]).plugins
    assert (plugin.distribution, plugin.version, plugin.error) == ("unknown", "unknown", None)


def test_unknown_names_get_a_suggestion() -> None:
    registry = Registry.discover()
    assert registry.get("liner") is None
    assert registry.suggest("liner") == f"did you mean 'linear'? Methods here: {', '.join(registry.names())}"
    assert registry.suggest("zzzzzz") == f"Methods here: {', '.join(registry.names())}"


def test_registries_do_not_share_methods() -> None:
    full, empty = Registry.discover(), Registry.discover([])
    assert full.names()
    assert empty.names() == []
    assert empty.plugins == []


def test_listing_methods_does_not_import_torch(run_python: Callable[[str], str]) -> None:
    code = "import sys; from safegraft.methods import Registry; r = Registry.discover(); print('torch' in sys.modules)"
    assert run_python(code) == "False\n"


@pytest.mark.parametrize(("model", "roles"), [("merged", ()), ("base", ()), ("aligned", ("harmful",))])
def test_a_statistic_is_of_a_model_that_there_is(model: str, roles: tuple[str, ...]) -> None:
    class Strange(MergeMethod):
        name = "strange"
        summary = "Strange."
        reference = "https://example.org"
        requires = Requirements(roles=roles, calibration=(Calibration("x", Statistic.SALIENCY, model=model),))
        granularity = Granularity.ELEMENT

        def merge(self, inputs: Any, base: Any, context: Any) -> Any:
            return inputs[0].tensor

    with pytest.raises(PluginError, match=rf"calibration 'x' is of '{model}', and it can be of input"):
        check_class(Strange)
