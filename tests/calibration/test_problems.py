"""What speaks against a request: said when planning, or before a weight is read; never by a traceback."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from safegraft.calibration import gather, notes, problems
from safegraft.errors import CheckpointError, InputError, NonFiniteError
from safegraft.local import open_model
from safegraft.methods.contract import Statistic

SQUARE = Statistic.GRADIENT_SQUARE


class Changed:
    """A copy of a model's folder to spoil."""

    def __init__(self, model: Any, folder: Path) -> None:
        shutil.copytree(model.checkpoint.name, folder)
        self.folder = folder

    def config(self, **changes: Any) -> None:
        path = self.folder / "config.json"
        config = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    def tensors(self, change: Any) -> None:
        path = self.folder / "model.safetensors"
        save_file(change(load_file(path)), path, {"format": "pt"})

    @property
    def checkpoint(self) -> Any:
        return open_model(str(self.folder))


@pytest.fixture
def changed(tmp_path: Path) -> Any:
    return lambda model: Changed(model, tmp_path / "changed")


def test_a_sound_request_has_none(llm: Any, tied: Any, lvlm: Any, data: Any, request_of: Any) -> None:
    for model in (llm, tied, lvlm):
        for statistic in (SQUARE, Statistic.SALIENCY, Statistic.INPUT_NORM, Statistic.INPUT_GRAM):
            assert problems(request_of(model, statistic, data.prompts())) == []


def test_a_class_that_transformers_does_not_have(llm: Any, data: Any, request_of: Any, changed: Any) -> None:
    model = changed(llm)
    model.config(architectures=["LlavaLlamaForCausalLM"])
    (problem,) = problems(request_of(model, SQUARE, data.prompts()))
    assert "is a 'LlavaLlamaForCausalLM'" in problem
    assert "code that comes with it is never run" in problem
    model.config(architectures=["LlamaModel"])
    assert "has no language model of that name" in problems(request_of(model, SQUARE, data.prompts()))[0]
    model.config(architectures=None)
    assert "has no `architectures`" in problems(request_of(model, SQUARE, data.prompts()))[0]


def test_a_model_without_tokenizer_or_processor(lvlm: Any, data: Any, request_of: Any, changed: Any) -> None:
    model = changed(lvlm)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (model.folder / name).unlink()
    found = problems(request_of(model, SQUARE, data.pictures()))
    assert ["has no tokenizer" in found[0], "preprocessor_config.json or processor_config.json" in found[1]] == [
        True,
        True,
    ]


def test_fields_that_a_statistic_cannot_use(llm: Any, data: Any, request_of: Any) -> None:
    pairs = data.open([{"p": "w1", "c": "w2", "r": "w3"}], fields={"prompt": "p", "chosen": "c", "rejected": "r"})
    for statistic in (SQUARE, Statistic.SALIENCY, Statistic.INPUT_NORM, Statistic.INPUT_GRAM):
        (problem,) = problems(request_of(llm, statistic, pairs))
        assert (
            problem == f"{statistic} needs `text` or `prompt`, `response`, and task has `chosen`, `prompt`, `rejected`"
        )
    found = problems(request_of(llm, Statistic.PREFERENCE_MASK, data.prompts(), reference=llm.checkpoint))
    assert found == ["preference_mask needs `chosen`, `prompt`, `rejected`, and task has `prompt`, `response`"]


def test_cosines_are_of_two_sets_of_two_samples(llm: Any, data: Any, request_of: Any) -> None:
    one = data.open([{"text": "w1"}], "one")
    cosines = Statistic.LAYER_COSINES
    assert problems(request_of(llm, cosines, data.prompts())) == ["layer_cosines is of 2 data sets, not of 1"]
    found = problems(request_of(llm, cosines, data.prompts(), one))
    assert found == ["layer_cosines compares samples with each other, and one has only one"]


@pytest.mark.parametrize(
    ("module", "message"), [("PIL", "images need pillow"), ("jinja2", "the chat template of .* needs jinja2")]
)
def test_what_is_not_installed_is_named(
    module: str, message: str, lvlm: Any, data: Any, request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = data.pictures()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == module else object())
    (problem,) = problems(request_of(lvlm, SQUARE, opened))
    assert re.search(message, problem)
    assert "safegraft[calibration]" in problem


def test_planning_imports_no_torch(llm: Any, data: Any) -> None:
    data.jsonl([{"text": "w1"}])
    program = f"""
import sys
from pathlib import Path
from safegraft.calibration import Request, open_data, problems
from safegraft.local import open_model
from safegraft.methods.contract import Statistic
from safegraft.recipe.model import CalibrationSet
spec = CalibrationSet("task", "data.jsonl", {{"text": "text"}}, 4, 0, 64, ())
data = open_data(spec, Path({str(data.folder / "data.jsonl")!r}), "here")
request = Request(Statistic.INPUT_GRAM, open_model({llm.checkpoint.name!r}), (data,), None, ("lm_head.weight",))
assert problems(request) == [], problems(request)
assert len(request.digest) == 64
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_a_gram_costs_is_told(llm: Any, data: Any, request_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert notes(request_of(llm, Statistic.INPUT_GRAM, data.prompts())) == []  # next to nothing
    monkeypatch.setattr("safegraft.calibration.request.WORTH_A_NOTE", 0)
    assert "GB in the cache" in notes(request_of(llm, Statistic.INPUT_GRAM, data.prompts()))[0]
    assert notes(request_of(llm, SQUARE, data.prompts())) == []


def test_a_parameter_without_weights_is_named(
    llm: Any, data: Any, request_of: Any, changed: Any, tmp_path: Path
) -> None:
    model = changed(llm)
    name = "model.layers.1.mlp.up_proj.weight"
    model.tensors(lambda tensors: {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(CheckpointError, match=f"has no weights for '{name}' of LlamaForCausalLM"):
        gather(request_of(model, SQUARE, data.prompts()), tmp_path / "cache")


def test_weights_of_another_size_than_the_config_says(
    llm: Any, data: Any, request_of: Any, changed: Any, tmp_path: Path
) -> None:
    model = changed(llm)
    model.config(intermediate_size=32)
    with pytest.raises(CheckpointError, match=r"'model.layers.0.mlp.down_proj.weight'.* have another shape"):
        gather(request_of(model, SQUARE, data.prompts()), tmp_path / "cache")


def test_a_config_that_transformers_refuses(llm: Any, data: Any, request_of: Any, changed: Any, tmp_path: Path) -> None:
    model = changed(llm)
    model.config(hidden_act="no such function")
    with pytest.raises(CheckpointError, match=r"transformers cannot build a LlamaForCausalLM from config\.json"):
        gather(request_of(model, SQUARE, data.prompts()), tmp_path / "cache")


def test_weights_that_are_not_finite(llm: Any, data: Any, request_of: Any, changed: Any, tmp_path: Path) -> None:
    model = changed(llm)
    model.tensors(
        lambda tensors: {key: value * float("nan") if "norm" in key else value for key, value in tensors.items()}
    )
    for statistic in (SQUARE, Statistic.INPUT_NORM, Statistic.INPUT_GRAM):
        with pytest.raises(NonFiniteError):
            gather(request_of(model, statistic, data.prompts()), tmp_path / "cache")
    with pytest.raises(NonFiniteError, match="layer 0 gives a state without direction"):
        gather(request_of(model, Statistic.LAYER_COSINES, data.prompts(), data.prompts()), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_samples_that_cannot_be_worded(llm: Any, data: Any, request_of: Any, tmp_path: Path) -> None:
    long = data.open([{"q": "w1 " * 20, "a": "w2"}], max_length=8, fields={"prompt": "q", "response": "a"})
    with pytest.raises(InputError, match=r"task.jsonl row 1: none of its response is left within max_length, 8 tokens"):
        gather(request_of(llm, SQUARE, long), tmp_path)
    with pytest.raises(InputError, match="row 1: has no token to predict: its text is a single token"):
        gather(request_of(llm, SQUARE, data.open([{"text": "w1"}])), tmp_path)


def test_a_template_that_drops_the_texts(llm: Any, data: Any, request_of: Any, changed: Any, tmp_path: Path) -> None:
    model = changed(llm)
    (model.folder / "chat_template.jinja").write_text("{% for m in messages %}<user> {% endfor %}")
    with pytest.raises(InputError, match="its chat template leaves out or changes the texts of"):
        gather(request_of(model, SQUARE, data.prompts()), tmp_path / "cache")
    (model.folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match=r"its chat template fails on .* row 1: .*roles must alternate"):
        gather(request_of(model, SQUARE, data.prompts()), tmp_path / "cache")


def test_a_model_that_fails_at_work(lvlm: Any, data: Any, request_of: Any, changed: Any, tmp_path: Path) -> None:
    model = changed(lvlm)
    model.config(image_token_index=7)
    with pytest.raises(InputError, match=r"row 1: .* cannot be put to work on it: ValueError: Image features"):
        gather(request_of(model, SQUARE, data.pictures()), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_picture_that_is_none(lvlm: Any, data: Any, request_of: Any, tmp_path: Path) -> None:
    (data.folder / "a.png").write_bytes(b"no picture")
    rows = [{"q": "w1", "a": "w2", "image": "a.png"}]
    opened = data.open(rows, fields={"prompt": "q", "response": "a", "image": "image"})
    with pytest.raises(InputError, match=r"task.jsonl row 1: its image is of no kind that pillow reads"):
        gather(request_of(lvlm, SQUARE, opened), tmp_path)
