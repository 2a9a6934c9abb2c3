"""Every error class travels as one gRPC status with its details, and comes back as itself."""

import base64
import inspect
import re
from pathlib import Path
from urllib.parse import quote

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from safegraft import errors
from safegraft.errors import Problem, SafegraftError
from safegraft.rpc.status import CLASSES, CODES, MAX_VIOLATIONS, code_of, from_status, restore, to_status

ALL = sorted(
    (one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, SafegraftError)),
    key=lambda one: one.__name__,
)
PROTOS = Path(__file__).parents[2] / "protos" / "safegraft" / "v1"


def test_every_error_class_has_a_status_of_its_own():
    assert set(CODES) == set(ALL)
    assert len({cls.reason for cls in ALL}) == len(ALL), "reasons tell classes apart"


def test_the_documented_table_is_the_real_one():
    rows = re.findall(r"^// \| ([A-Z_]+) \| ([A-Z_]+) \|", (PROTOS / "merge_service.proto").read_text(), re.MULTILINE)
    assert dict(rows) == {cls.reason: code.name for cls, code in CODES.items()}


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("problems", [[Problem("", "all is lost")], [Problem("here", "a"), Problem("there", "b")]])
def test_an_error_comes_back_as_itself(cls: type[SafegraftError], problems: list[Problem]):
    error = cls(problems)
    status = to_status(error)
    back = from_status(status)
    assert type(back) is cls
    assert str(back) == str(error)
    if CODES[cls] in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED):
        assert back.problems == error.problems


@pytest.mark.parametrize("cls", ALL)
def test_details_are_those_that_the_code_calls_for(cls: type[SafegraftError]):
    kinds = {detail.TypeName() for detail in to_status(cls("x")).details}
    wanted = {
        grpc.StatusCode.INVALID_ARGUMENT: "google.rpc.BadRequest",
        grpc.StatusCode.FAILED_PRECONDITION: "google.rpc.PreconditionFailure",
        grpc.StatusCode.ABORTED: "google.rpc.PreconditionFailure",
        grpc.StatusCode.UNAVAILABLE: "google.rpc.RetryInfo",
    }.get(CODES[cls])
    assert kinds == {"google.rpc.ErrorInfo"} | ({wanted} if wanted else set())


def test_error_info_names_the_domain():
    info = error_details_pb2.ErrorInfo()
    assert to_status(errors.RecipeError("x")).details[0].Unpack(info)
    assert (info.domain, info.reason) == ("safegraft", "RECIPE_INVALID")


texts = st.text(st.characters(exclude_categories=()), max_size=3000)  # file names may hold half surrogates


@given(st.lists(st.builds(Problem, texts, texts), min_size=1, max_size=60))
def test_details_fit_into_trailing_metadata_whatever_went_wrong(problems: list[Problem]):
    status = to_status(errors.RecipeError(problems))
    details, message = base64.b64encode(status.SerializeToString()), quote(status.message)
    assert len(details) + len(message) < 8192 - 512
    back = from_status(status)
    assert isinstance(back, errors.RecipeError)
    assert 1 <= len(back.problems) <= MAX_VIOLATIONS


def test_what_does_not_fit_is_counted():
    back = from_status(to_status(errors.RecipeError([Problem(f"line {n}", "wrong") for n in range(50)])))
    assert len(back.problems) == MAX_VIOLATIONS
    assert back.problems[-1].message == "and 31 more"


def test_an_error_of_a_plugin_s_own_class_travels_as_its_parent():
    class Own(errors.PluginError):
        pass

    assert code_of(Own("x")) is grpc.StatusCode.INTERNAL
    assert type(from_status(to_status(Own("x")))) is errors.PluginError


def test_a_stored_error_comes_back():
    assert CLASSES["OUTPUT_FAILED"] is errors.OutputError
    back = restore("OUTPUT_FAILED", [("here", "disk full")])
    assert isinstance(back, errors.OutputError)
    assert back.problems == (Problem("here", "disk full"),)
