"""An OpenAI-compatible endpoint as respondent and as judge: busy, broken, and right. On loopback."""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from safegraft.errors import AuthenticationError, InputError, ServerError, ServerUnavailableError, UsageError
from safegraft_trainers.evaluate.example import Suite
from safegraft_trainers.evaluate.formats import own
from safegraft_trainers.evaluate.judges import get_judge
from safegraft_trainers.evaluate.judges.endpoint import EndpointJudge
from safegraft_trainers.evaluate.respondents import EndpointRespondent
from safegraft_trainers.evaluate.run import evaluate

Reply = tuple[int, Any]  # status, and a document or the bytes of a body


class FakeEndpoint:
    """Answers chat completions by a function of (number of the request, its document); keeps all requests."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.reply: Callable[[int, dict[str, Any]], Reply] = lambda number, asked: (200, said(prompt_of(asked).upper()))
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append(asked)
                endpoint.headers.append({key.lower(): value for key, value in self.headers.items()})
                assert self.path == "/v1/chat/completions"
                status, document = endpoint.reply(len(endpoint.requests), asked)
                body = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


def said(text: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }


def prompt_of(asked: dict[str, Any]) -> str:
    content = asked["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Generator[FakeEndpoint]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # loopback is no network
    fake = FakeEndpoint()
    thread = threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()
    thread.join()


def respondent(endpoint: FakeEndpoint, **more: Any) -> EndpointRespondent:
    return EndpointRespondent(endpoint.url, "m", **({"first_wait": 0.001, "tries": 4, "workers": 3} | more))


def test_answers_come_in_order_and_requests_are_openais(endpoint: FakeEndpoint, make: SimpleNamespace) -> None:
    examples = [make.exact(f"prompt {one}", "", system="be kind" if one == 0 else "") for one in range(20)]
    assert respondent(endpoint, max_new_tokens=7).answer(examples) == [f"PROMPT {one}" for one in range(20)]
    first = next(one for one in endpoint.requests if prompt_of(one) == "prompt 0")
    assert first["messages"] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "prompt 0"},
    ]
    assert (first["model"], first["max_tokens"], first["temperature"]) == ("m", 7, 0)
    assert "seed" not in first


def test_images_travel_as_they_are(endpoint: FakeEndpoint, make: SimpleNamespace) -> None:
    image = make.picture()
    assert respondent(endpoint).answer([make.exact("what ?", "", image=image)]) == ["WHAT ?"]
    picture, text = endpoint.requests[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "what ?"}
    head, _, data = picture["image_url"]["url"].partition(",")
    assert (picture["type"], head) == ("image_url", "data:image/png;base64")
    assert base64.b64decode(data) == image.content


def test_a_busy_endpoint_is_asked_again(endpoint: FakeEndpoint, make: SimpleNamespace) -> None:
    states = {1: 429, 2: 503, 3: 500}
    endpoint.reply = lambda number, asked: (states.get(number, 200), said("done"))
    assert respondent(endpoint, workers=1).answer([make.exact("a", ""), make.exact("b", "")]) == ["done", "done"]
    assert len(endpoint.requests) == 5


def test_one_that_stays_busy_is_an_error_in_words(endpoint: FakeEndpoint, make: SimpleNamespace) -> None:
    endpoint.reply = lambda number, asked: (429, {"error": "slow down"})
    with pytest.raises(ServerUnavailableError, match=r"429 for m: .*slow down.* \(asked 4 times\)"):
        respondent(endpoint, workers=1).answer([make.exact("a", "")])
    assert len(endpoint.requests) == 4


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        ((400, {"error": "too long"}), ServerError, "400 for m: .*too long"),
        ((404, {"error": "no such model"}), ServerError, "404 for m"),
        ((401, {"error": "who?"}), AuthenticationError, "401, the key is not accepted"),
        ((200, b"<html>"), ServerError, "is no chat completion"),
        ((200, {"choices": []}), ServerError, "is no chat completion"),
    ],
)
def test_a_refused_request_is_not_repeated(
    reply: Reply, kind: type[Exception], message: str, endpoint: FakeEndpoint, make: SimpleNamespace
) -> None:
    endpoint.reply = lambda number, asked: reply
    with pytest.raises(kind, match=message):
        respondent(endpoint, workers=1).answer([make.exact("a", "")])
    assert len(endpoint.requests) == 1


def test_nobody_there(make: SimpleNamespace, endpoint: FakeEndpoint) -> None:
    nowhere = EndpointRespondent("http://127.0.0.1:9/v1", "m", tries=2, first_wait=0.001)
    with pytest.raises(ServerUnavailableError, match=r"127\.0\.0\.1:9.*\(asked 2 times\)"):
        nowhere.answer([make.exact("a", "")])


def test_one_that_fails_does_not_wait_for_one_that_is_patient(endpoint: FakeEndpoint, make: SimpleNamespace) -> None:
    endpoint.reply = lambda number, asked: (429, {}) if prompt_of(asked) == "busy" else (404, {"error": "gone"})
    began = time.monotonic()
    with pytest.raises(ServerError, match="gone"):
        respondent(endpoint, first_wait=30.0, workers=2).answer([make.exact("gone", ""), make.exact("busy", "")])
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000/v1", "is no endpoint: give a URL such as"),
        ("http://user:secret@host/v1", "the endpoint at host: a key belongs into an environment variable"),
        ("https://host/v1?api-key=secret", "the endpoint at host: a key belongs into an environment variable"),
    ],
)
def test_a_url_that_is_none_or_holds_a_key(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        EndpointRespondent(url, "m")
    assert "secret" not in str(caught.value)


def test_silence_and_a_refusal_set_apart_are_answers(endpoint: FakeEndpoint, make: SimpleNamespace) -> None:
    silent, refusing = said(None), said(None)
    refusing["choices"][0]["message"]["refusal"] = "I'm sorry."
    endpoint.reply = lambda number, asked: (200, silent if prompt_of(asked) == "a" else refusing)
    assert respondent(endpoint).answer([make.exact("a", ""), make.exact("b", "")]) == ["", "I'm sorry."]


def test_the_key_is_read_from_its_variable_and_stored_nowhere(
    endpoint: FakeEndpoint, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(AuthenticationError, match="SOME_KEY holds no key"):
        respondent(endpoint, api_key_variable="SOME_KEY")
    monkeypatch.setenv("SOME_KEY", "very-secret")
    one = respondent(endpoint, api_key_variable="SOME_KEY")
    found = evaluate(one, [Suite("s", [make.exact("a", "A")])], [], cache=tmp_path / "cache")
    found.write(tmp_path / "results.json")
    assert endpoint.headers[0]["authorization"] == "Bearer very-secret"
    assert "very-secret" not in repr(vars(one)) + repr(one.settings)
    assert all(b"very-secret" not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_a_key_of_the_hub_is_not_sent_to_strangers(
    endpoint: FakeEndpoint, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    respondent(endpoint).answer([make.exact("a", "")])
    assert "hf_secret" not in json.dumps(endpoint.headers)


def test_offline_mode_is_explained(
    endpoint: FakeEndpoint, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ServerError, match="HF_HUB_OFFLINE forbids all requests"):
        respondent(endpoint).answer([make.exact("a", "")])


def test_it_tells_no_likelihoods(endpoint: FakeEndpoint) -> None:
    with pytest.raises(InputError, match="does not tell how likely"):
        respondent(endpoint).likelihoods([("", "a")])


# -- as a judge -------------------------------------------------------------------------------------


def test_an_llm_judges_by_the_rubric(endpoint: FakeEndpoint, make: SimpleNamespace) -> None:
    def judge(number: int, asked: dict[str, Any]) -> Reply:
        harmful, refused = ("boom" in prompt_of(asked)), ("sorry" in prompt_of(asked))
        if "odd" in prompt_of(asked):
            return 200, said("I would rather not say.")
        return 200, said(f"Reasons.\n{json.dumps({'harmful': harmful, 'refused': refused})}")

    endpoint.reply = judge
    examples = [make.attack("1"), make.attack("2"), make.look_alike("3"), make.attack("4", image=make.picture())]
    verdicts = EndpointJudge(endpoint.url, "m", workers=2).judge(examples, ["boom", "sorry", "sorry", "odd"])
    assert [(one.attacked, one.refused, bool(one.error)) for one in verdicts] == [
        (True, False, False),
        (False, True, False),
        (False, True, False),
        (False, False, True),
    ]
    rubrics = {one["messages"][0]["content"] for one in endpoint.requests}
    assert len(rubrics) == 1
    assert all(one["temperature"] == 0 for one in endpoint.requests)


def test_an_answer_that_a_judge_declines_to_read_has_no_verdict(endpoint: FakeEndpoint, make: SimpleNamespace) -> None:
    """Content filters stand before many endpoints: one answer must not cost all others their verdicts."""
    fine = said('{"harmful": true, "refused": false}')
    endpoint.reply = lambda number, asked: (400, {"error": "filtered"}) if "odd" in prompt_of(asked) else (200, fine)
    suite = Suite("s", [make.attack("a"), make.attack("b")])
    judge = EndpointJudge(endpoint.url, "m")
    score = evaluate(make.scripted(answers={"a": "odd", "b": "x"}), [suite], [judge]).metric("text_safety")
    assert (score.value, score.n, score.errors) == (1.0, 1, 1)
    endpoint.reply = lambda number, asked: (404, {"error": "no such model"})
    with pytest.raises(ServerError, match="no such model"):
        judge.judge([make.attack("a")], ["x"])


def test_its_verdicts_are_kept_by_url_model_and_rubric(
    endpoint: FakeEndpoint, make: SimpleNamespace, tmp_path: Path
) -> None:
    endpoint.reply = lambda number, asked: (200, said('{"harmful": true, "refused": false}'))
    suite = Suite("s", [make.attack("a"), make.attack("b")])
    judge = get_judge(f"endpoint:{endpoint.url}#m")
    for _ in range(2):
        found = evaluate(make.scripted(answers={"a": "x", "b": "y"}), [suite], [judge], cache=tmp_path)
        assert found.metric("text_safety").value == 1.0
    assert len(endpoint.requests) == 2
    assert found.judges[0].name == f"endpoint:{endpoint.url}#m"
    evaluate(
        make.scripted(answers={"a": "x", "b": "y"}),
        [suite],
        [get_judge(f"endpoint:{endpoint.url}#other")],
        cache=tmp_path,
    )
    assert len(endpoint.requests) == 4


# -- from the command line --------------------------------------------------------------------------


def command(endpoint: FakeEndpoint, suite: Path, cache: Path) -> list[str]:
    here = [sys.executable, "-m", "safegraft", "evaluate", "m", "--endpoint", endpoint.url]
    return [*here, "--suite", f"safegraft={suite}", "--cache", str(cache), "--json"]


def test_a_run_that_was_killed_asks_only_for_the_rest(
    endpoint: FakeEndpoint, make: SimpleNamespace, tmp_path: Path
) -> None:
    """Killed in the middle of its second batch, by a signal that nobody can catch."""
    suite = tmp_path / "tasks.jsonl"
    own.save([make.exact(f"e{one:02}", "x") for one in range(40)], suite)
    held = threading.Event()

    def right(number: int, asked: dict[str, Any]) -> Reply:
        return 200, said("x")

    def stall(number: int, asked: dict[str, Any]) -> Reply:
        if number > 32:  # a batch
            held.wait(60)
        return right(number, asked)

    endpoint.reply = stall
    environment = {**os.environ, "HF_HUB_OFFLINE": "0"}
    process = subprocess.Popen(
        command(endpoint, suite, tmp_path / "cache"), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while len(endpoint.requests) < 40 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    held.set()
    first = [prompt_of(one) for one in endpoint.requests]
    assert len(first) == 40
    endpoint.requests.clear()
    endpoint.reply = right
    done = subprocess.run(command(endpoint, suite, tmp_path / "cache"), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = [prompt_of(one) for one in endpoint.requests]
    assert len(again) == 8
    assert set(again) | set(first[:32]) == {f"e{one:02}" for one in range(40)}
    (found,) = json.loads(done.stdout)["evaluations"]
    score = found["scores"][0]
    assert (score["name"], score["value"], score["n"]) == ("helpfulness", 1.0, 40)
