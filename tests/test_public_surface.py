"""What users may import. A name that goes missing here breaks somebody: that takes a new version."""

import importlib
import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import safegraft
import safegraft.methods
import safegraft.testing
from safegraft import errors
from safegraft.errors import Problem, SafegraftError

SURFACE = {
    "AlignmentError",
    "AuthenticationError",
    "CheckpointError",
    "Client",
    "ConflictError",
    "DataCorruptedError",
    "InputChangedError",
    "InputError",
    "MergeCancelledError",
    "MergeResult",
    "MergedCheckpoint",
    "NonFiniteError",
    "NotFoundError",
    "OutputError",
    "Plan",
    "PluginError",
    "Problem",
    "Progress",
    "Recipe",
    "RecipeError",
    "SafegraftError",
    "ServerError",
    "ServerUnavailableError",
    "UsageError",
    "hookimpl",
    "merge",
    "open",
    "plan",
}


def every_error() -> list[type[SafegraftError]]:
    found = [SafegraftError]
    for kind in found:
        found += kind.__subclasses__()
    return [kind for kind in found if kind.__module__ == errors.__name__]


def test_the_package() -> None:
    assert set(safegraft.__all__) == SURFACE
    assert set(dir(safegraft)) == SURFACE | {"__version__"}
    for name in SURFACE:
        assert getattr(safegraft, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = safegraft.nothing


def test_the_plugin_contract() -> None:
    assert set(safegraft.methods.__all__) == {
        "Calibration",
        "CheckpointSource",
        "Compiled",
        "Context",
        "DeclinedError",
        "Granularity",
        "Input",
        "MergeMethod",
        "Modifier",
        "NoParameters",
        "Plugin",
        "Prepared",
        "Publisher",
        "Registry",
        "Requirements",
        "Statistic",
        "StoredCut",
        "StoredView",
        "TensorMap",
        "TensorView",
        "hookimpl",
    }


def test_every_public_thing_says_what_it_is() -> None:
    for name in SURFACE:
        assert inspect.getdoc(getattr(safegraft, name)), name


def test_importing_safegraft_is_cheap() -> None:
    code = "import sys, safegraft; print([m for m in ('torch', 'numpy', 'grpc', 'pydantic') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_planning_imports_no_torch() -> None:
    code = "import sys, safegraft.api as a; a.registry(); print({'torch', 'transformers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_the_error_tree_is_drawn_as_it_is() -> None:
    drawn = re.findall(r"^[ │├└─]*(\w+Error)\b.*?(?:exit (\d))?$", errors.__doc__ or "", re.MULTILINE)
    assert {name for name, _ in drawn} == {kind.__name__ for kind in every_error()}
    for name, code in drawn:
        if code:
            assert getattr(errors, name).exit_code == int(code), name


def test_reasons_are_unlike_and_upper_snake() -> None:
    reasons = [kind.reason for kind in every_error()]
    assert len(set(reasons)) == len(reasons)
    assert all(re.fullmatch(r"[A-Z]+(_[A-Z]+)*", reason) for reason in reasons)


@pytest.mark.parametrize("kind", every_error())
def test_errors_cross_process_borders(kind: type[SafegraftError]) -> None:
    error = kind([Problem("here", "wrong"), Problem("", "also wrong")])
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert copy.problems == error.problems
    assert str(copy) == "here: wrong\nalso wrong"


def test_every_module_says_what_it_is_for() -> None:
    root = Path(safegraft.__file__).parent
    for file in root.rglob("*.py"):
        name = ".".join(("safegraft", *file.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        if not name.startswith("safegraft.v1") and name != "safegraft.__main__":
            assert importlib.import_module(name).__doc__, name
