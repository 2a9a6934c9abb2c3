"""Code that loads a result and asks it something, as its files allow: with a picture, with its chat template, or plain.

Pure text. Tests run every kind of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from safegraft.checkpoint.strict_json import parse_object
from safegraft.engine.anatomy import is_multimodal
from safegraft.engine.task import PlannedFile
from safegraft.errors import CheckpointError

_PROCESSOR_FILES = {"processor_config.json", "preprocessor_config.json"}
_TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "tokenizer.model"}
_TEMPLATE_FILES = {"chat_template.jinja", "chat_template.json"}
_TEMPLATE_HOLDERS = {"tokenizer_config.json", "processor_config.json"}

HERE = "# this folder, or the name of this repository on the Hub"
VERIFY = f"safegraft verify . --recompute  {HERE}"

_LOAD = """\
{imports}

name = "."  {here}
{front}model = {model}.from_pretrained(name, dtype="auto")
"""
_ASK_ABOUT_A_PICTURE = """
content = [{"type": "image", "image": Image.open("picture.png")}, {"type": "text", "text": "What is in this picture?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
).to(model.device, dtype=model.dtype)
output = model.generate(**inputs, max_new_tokens=200)
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
_ASK = """
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": "What is the capital of France?"}],
    add_generation_prompt=True,
    return_dict=True,
    return_tensors="pt",
).to(model.device)
output = model.generate(**inputs, max_new_tokens=200)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
_CONTINUE = """
inputs = tokenizer("The capital of France is", return_tensors="pt").to(model.device)
output = model.generate(**inputs, max_new_tokens=50)
print(tokenizer.decode(output[0], skip_special_tokens=True))
"""


def addressed(card: bytes, repository: str) -> bytes:
    """A card whose code names the repository that it is published in."""
    named = card.replace(f'name = "."  {HERE}'.encode(), f'name = "{repository}"'.encode())
    return named.replace(VERIFY.encode(), f"safegraft verify {repository} --recompute".encode())


def snippet(config: Mapping[str, Any], files: Sequence[PlannedFile]) -> str:
    """Python for transformers. config: the result's config.json. files: the result's, small ones with their content."""
    names = {file.name for file in files}
    multimodal = is_multimodal(config)
    model = "AutoModelForImageTextToText" if multimodal else "AutoModelForCausalLM"
    if multimodal and names & _PROCESSOR_FILES:
        reader, variable = "AutoProcessor", "processor"
    elif names & _TOKENIZER_FILES:
        reader, variable = "AutoTokenizer", "tokenizer"
    else:
        return _load(model)
    loads = _load(model, reader, variable)
    templates = _has_template(files)
    if multimodal:  # without a template nobody knows where such a model expects its pictures
        asks = templates and reader == "AutoProcessor"
        return "from PIL import Image\n" + loads + _ASK_ABOUT_A_PICTURE if asks else loads
    return loads + (_ASK if templates else _CONTINUE)


def _load(model: str, reader: str | None = None, variable: str = "") -> str:
    names = sorted(filter(None, (model, reader)))
    front = f"{variable} = {reader}.from_pretrained(name)\n" if reader else ""
    return _LOAD.format(here=HERE, imports=f"from transformers import {', '.join(names)}", front=front, model=model)


def _has_template(files: Sequence[PlannedFile]) -> bool:
    return any(
        file.name in _TEMPLATE_FILES or (file.name in _TEMPLATE_HOLDERS and _holds_template(file)) for file in files
    )


def _holds_template(file: PlannedFile) -> bool:
    try:
        return "chat_template" in parse_object(file.content or b"{}", file.name)
    except CheckpointError:  # a stranger's file that transformers may still read in its own way
        return False
