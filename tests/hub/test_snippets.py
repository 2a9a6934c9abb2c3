"""The code in a card does what it says: it is run, as it stands there, in the folder of a merge."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import safegraft
from safegraft.engine.task import PlannedFile
from safegraft.hub.snippets import snippet
from safegraft.testing import tiny_llm
from safegraft_trainers.lab.shipped import CHECKPOINTS


def code_of(folder: Path) -> str:
    return re.search(r"^## Use\n\n```python\n(.*?)^```$", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)[
        1
    ]


def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(code_of(folder), "README.md", "exec"), names)
    return names


def merged(out: Path, *models: Path) -> Path:
    safegraft.merge(
        {"models": [{"model": str(one)} for one in models], "merge_method": "linear", "parameters": {"weight": 0.5}},
        out=out,
    )
    return out


def test_a_merged_lvlm_is_asked_about_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = merged(tmp_path / "merged", CHECKPOINTS / "adapted-lvlm", CHECKPOINTS / "aligned-llm")
    Image.new("RGB", (40, 30), "red").save(folder / "picture.png")
    names = run(folder, monkeypatch)
    assert "pixel_values" in names["inputs"]
    assert names["inputs"]["pixel_values"].dtype == names["model"].dtype
    assert capsys.readouterr().out.strip()


def test_a_merged_llm_with_a_template_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = merged(tmp_path / "merged", CHECKPOINTS / "aligned-llm", CHECKPOINTS / "base-llm")
    names = run(folder, monkeypatch)
    assert names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]
    assert capsys.readouterr().out.strip()


def test_a_merged_llm_without_one_goes_on_with_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [tiny_llm(tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b"))]
    names = run(merged(tmp_path / "merged", *models), monkeypatch)
    assert names["output"].shape == (1, names["inputs"]["input_ids"].shape[1] + 50)


TEMPLATE = b'{"chat_template": "{{ messages }}"}'
LVLM = {"vision_config": {}}


@pytest.mark.parametrize(
    ("config", "files", "classes", "asks"),
    [
        (LVLM, {"processor_config.json": TEMPLATE}, "ImageTextToText Processor", "processor.apply_chat_template("),
        (LVLM, {"preprocessor_config.json": b"{}"}, "ImageTextToText Processor", ""),
        (LVLM, {"tokenizer_config.json": TEMPLATE}, "ImageTextToText Tokenizer", ""),
        ({}, {"tokenizer_config.json": TEMPLATE}, "CausalLM Tokenizer", "tokenizer.apply_chat_template("),
        (
            {},
            {"tokenizer.json": b"", "chat_template.jinja": b""},
            "CausalLM Tokenizer",
            "tokenizer.apply_chat_template(",
        ),
        ({}, {"tokenizer_config.json": b"no JSON"}, "CausalLM Tokenizer", "tokenizer("),
        ({}, {"tokenizer.json": TEMPLATE, "processor_config.json": b"{}"}, "CausalLM Tokenizer", "tokenizer("),
        ({}, {}, "CausalLM", ""),
    ],
)
def test_it_uses_what_is_there(config: dict[str, Any], files: dict[str, bytes], classes: str, asks: str) -> None:
    planned = [PlannedFile(name, len(content), "sidecar", content=content) for name, content in files.items()]
    text = snippet(config, planned)
    imported = next(
        one for one in ast.parse(text).body if isinstance(one, ast.ImportFrom) and one.module == "transformers"
    )
    model, *readers = classes.split()
    assert [one.name for one in imported.names] == [f"AutoModelFor{model}", *(f"Auto{one}" for one in readers)]
    assert asks in text
    assert ("model.generate(" in text) is bool(asks)
