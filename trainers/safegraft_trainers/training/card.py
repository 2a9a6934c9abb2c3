"""The model card of a trained model: its README.md, from the record of its training alone.

No dates and nothing of the machine. Whatever strangers named (models, data) stands in code spans.
"""

from collections.abc import Sequence

import yaml

from safegraft.hub.markdown import cell, code, fence
from safegraft_trainers.training.provenance import Record, is_hub_name

_UNEVALUATED = """\
> [!WARNING]
> **Nothing here has been evaluated but the loss.** Adapting a language model to vision weakens its safety even on clean
> data (arXiv 2410.07571), and safety tuning can make a model refuse harmless requests. Measure attack success on text
> and on images, refusal of harmless requests, and helpfulness before anyone relies on this model:
> `safegraft evaluate`."""

_LICENCE = """\
Not declared: neither the weights nor the data say theirs. Read the licences of the base models and of the data, and set
`license` in the head of this file before you publish."""


def render_card(record: Record, name: str) -> str:
    """README.md. name: of the model, for the heading and the snippet."""
    sections = [
        f"---\n{_metadata(record)}\n---",
        f"# {_plain(name)}",
        _introduction(record),
        _UNEVALUATED,
        f"## Data\n\n{_data(record)}",
        f"## What was trained\n\n{_parameters(record)}",
        f"## Hyperparameters\n\n{fence(_arguments(record), 'yaml')}",
        f"## Outcome\n\n{_outcome(record)}",
        f"## Use\n\n{fence(_snippet(record), 'python')}",
        f"## Licence\n\n{_LICENCE}",
        f"## Versions\n\n{_versions(record)}",
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(record: Record) -> str:
    from huggingface_hub import ModelCardData

    bases = [base for base in record.base_models if is_hub_name(base)]
    is_adapter = record.adapter is not None and not record.merged
    metadata = ModelCardData(
        base_model=bases or None,
        base_model_relation=("adapter" if is_adapter else "finetune") if bases else None,
        datasets=[one.name for one in record.data if is_hub_name(one.name)] or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="image-text-to-text" if record.multimodal else "text-generation",
        tags=["safegraft", record.command, "trl"],
    )
    return str(metadata)


def _introduction(record: Record) -> str:
    bases = " and ".join(code(base) for base in record.base_models)
    return f"{record.title}, from {bases}, by `safegraft train {record.command}`."


def _data(record: Record) -> str:
    rows = ["| data | rows | sha256 of its rows |", "|---|---|---|"]
    rows += [f"| {cell(one.name)} | {one.rows} | {cell(one.digest[:12])} |" for one in record.data]
    parts = ["\n".join(rows)]
    if record.filter_report:
        parts.append("What the safe-data filter took out:\n\n" + fence(record.filter_report))
    if record.notes:
        parts.append("\n".join(f"- {_plain(note)}" for note in record.notes))
    return "\n\n".join(parts)


def _parameters(record: Record) -> str:
    rows = ["| part | parameters | trained |", "|---|---|---|"]
    rows += [f"| {one.part} | {one.total:,} | {one.trained:,} |" for one in record.parameters]
    text = "\n".join(rows)
    if record.adapter is not None:
        merged = "and is merged into these weights" if record.merged else "and these files hold it alone"
        text += f"\n\nThe language model learnt through an adapter, {merged}:\n\n"
        text += fence(yaml.safe_dump(dict(record.adapter), sort_keys=True), "yaml")
    return text


def _arguments(record: Record) -> str:
    """The rest were the defaults of the versions below."""
    return yaml.safe_dump(dict(record.arguments), sort_keys=True, allow_unicode=True, default_flow_style=None)


def _outcome(record: Record) -> str:
    losses = [f"- {code(kind)}: {value:.4g}" for kind, value in record.losses.items()]
    return "\n".join([f"{record.steps} optimisation steps, {record.epochs:.3g} epochs.", "", *losses]).rstrip()


def _snippet(record: Record) -> str:
    model = "AutoModelForImageTextToText" if record.multimodal else "AutoModelForCausalLM"
    front = "AutoProcessor" if record.multimodal else "AutoTokenizer"
    lines = [f"from transformers import {model}, {front}", ""]
    variable = "processor" if record.multimodal else "tokenizer"
    lines.append('folder = "."  # this folder, or the name of this repository on the Hub')
    lines.append(f"{variable} = {front}.from_pretrained(folder)")
    if record.adapter is not None and not record.merged:
        lines.insert(0, "from peft import PeftModel")
        lines.append(f'base = {model}.from_pretrained({_quoted(record.base_models)}, dtype="auto")')
        lines.append("model = PeftModel.from_pretrained(base, folder)")
    else:
        lines.append(f'model = {model}.from_pretrained(folder, dtype="auto")')
    return "\n".join(lines)


def _quoted(names: Sequence[str]) -> str:
    return repr(names[0] if names else "the base model")


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items()))


def _plain(text: str) -> str:
    """A line of ours that may hold a name: no line break and no markup."""
    return " ".join(text.split()).replace("<", "&lt;").replace("`", "'")
