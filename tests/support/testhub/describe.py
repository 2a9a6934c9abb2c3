"""How repositories, files and commits read in the Hub's JSON, and what it takes from a model card."""

import json
import re
from typing import Any

import yaml

from testhub.objects import File, Objects, pointer
from testhub.repositories import Commit, Repository

_RESULTS = re.compile(r"\.eval_results/[^/]+\.yaml").fullmatch
_MODEL_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?").fullmatch
_LISTED = ("library_name", "pipeline_tag")


class BadCard(ValueError):
    """The head of a README.md is no YAML mapping."""


def card_data(readme: str) -> dict[str, Any] | None:
    """The metadata between the first two `---` lines; None without them.

    Raises:
        BadCard: it is not what YAML or the Hub allows.
    """
    lines = readme.replace("\r\n", "\n").split("\n")
    if lines[0].rstrip() != "---" or "---" not in [line.rstrip() for line in lines[1:]]:
        return None
    end = [line.rstrip() for line in lines].index("---", 1)
    try:
        data = yaml.safe_load("\n".join(lines[1:end]))
    except yaml.YAMLError as error:
        raise BadCard(f"YAML: {error}") from error
    if not isinstance(data, dict):
        raise BadCard("the metadata must be a mapping")
    return json.loads(json.dumps(data, default=str))  # dates become words, as in the Hub's JSON


def card_problems(readme: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about the metadata of a README.md, those the Hub has and this project may run into."""
    try:
        data = card_data(readme)
    except BadCard as error:
        return [str(error)], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    errors = [f'"{key}" must be a string' for key in _LISTED if not isinstance(data.get(key, ""), str)]
    for key in ("tags", "datasets", "base_model", "language"):
        value = data.get(key, [])
        if not isinstance(value, str | list) or not all(isinstance(each, str) for each in value):
            errors.append(f'"{key}" must be a string or a list of strings')
    bases = data.get("base_model", [])
    for base in [bases] if isinstance(bases, str) else bases if isinstance(bases, list) else []:
        if not _MODEL_ID(str(base)):
            errors.append(f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.')
    if not isinstance(data.get("model-index", []), list):
        errors.append('"model-index" must be a list')
    return errors, []


def info(repository: Repository, commit: Commit, objects: Objects, blobs: bool) -> dict[str, Any]:
    """What `/api/models/{id}` tells."""
    card: dict[str, Any] = {}
    readme = commit.files.get("README.md")
    if readme is not None:
        try:
            card = card_data(objects.path(readme).read_text("utf-8", "replace")) or {}
        except BadCard:
            card = {}
    told: dict[str, Any] = {
        "_id": repository.first.oid[:24],
        "id": repository.id,
        "modelId": repository.id,
        "author": repository.namespace,
        "sha": commit.oid,
        "createdAt": repository.first.date,
        "lastModified": commit.date,
        "private": repository.private,
        "gated": repository.gated or False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": _tags(card),
        "siblings": [_sibling(path, file, blobs) for path, file in commit.files.items()],
        "usedStorage": sum(file.size for file in commit.files.values()),
    }
    if card:
        told["cardData"] = card
        told |= {key: card[key] for key in (*_LISTED, "model-index") if key in card}
    if "config.json" in commit.files:
        told["config"] = _config(objects.path(commit.files["config.json"]).read_bytes())
    results = [_evaluations(objects.path(file).read_bytes()) for path, file in commit.files.items() if _RESULTS(path)]
    if results:
        told["evalResults"] = [{"data": each} for entries in results for each in entries]
    return told


def entry(path: str, file: File) -> dict[str, Any]:
    """A file in a listing."""
    told: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
    if file.sha256 is not None:
        told["lfs"] = {"oid": file.sha256, **_lfs(file)}
    return told


def last_commit(commit: Commit) -> dict[str, Any]:
    return {"id": commit.oid, "title": commit.title, "date": commit.date}


def described(commit: Commit) -> dict[str, Any]:
    """A commit in a history."""
    return {
        "id": commit.oid,
        "title": commit.title,
        "message": commit.message,
        "authors": [{"user": commit.author, "avatar": ""}],
        "date": commit.date,
    }


def _sibling(path: str, file: File, blobs: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"rfilename": path}
    if blobs:
        told |= {"blobId": file.oid, "size": file.size}
        if file.sha256 is not None:
            told["lfs"] = {"sha256": file.sha256, **_lfs(file)}
    return told


def _lfs(file: File) -> dict[str, int]:
    assert file.sha256 is not None
    return {"size": file.size, "pointerSize": len(pointer(file.sha256, file.size))}


def _tags(card: dict[str, Any]) -> list[str]:
    tags = [card[key] for key in _LISTED if key in card]
    for key, prefix in (("tags", ""), ("base_model", "base_model:"), ("datasets", "dataset:"), ("license", "license:")):
        value = card.get(key) or []
        tags += [f"{prefix}{each}" for each in ([value] if isinstance(value, str) else value)]
    if "base_model_relation" in card and "base_model" in card:
        bases = [card["base_model"]] if isinstance(card["base_model"], str) else card["base_model"]
        tags += [f"base_model:{card['base_model_relation']}:{base}" for base in bases]
    return list(dict.fromkeys(tags))


def _evaluations(data: bytes) -> list[Any]:
    """The entries of an `.eval_results/*.yaml`; the Hub leaves out a file that it cannot read."""
    try:
        entries = yaml.safe_load(data)
    except yaml.YAMLError:
        entries = None
    return json.loads(json.dumps(entries, default=str)) if isinstance(entries, list) else []


def _config(data: bytes) -> dict[str, Any]:
    try:
        config = json.loads(data)
    except ValueError:
        return {}
    return {key: config[key] for key in ("architectures", "model_type") if key in config}
