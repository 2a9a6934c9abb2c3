"""The result's chat template: chosen from the inputs', known by name, or given; written where transformers reads it.

The named ones are written here after the formats' public descriptions. They show text, not images.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from safegraft.checkpoint.sidecars import CHAT_TEMPLATES, dump_like
from safegraft.checkpoint.strict_json import as_list, as_object, parse_object
from safegraft.checkpoint.tokenizer_files import TOKENIZER_CONFIG
from safegraft.checkpoint.types import Checkpoint
from safegraft.engine.anatomy import is_multimodal
from safegraft.engine.virtual import stored
from safegraft.recipe.model import Recipe

JINJA = "chat_template.jinja"
LEGACY = "chat_template.json"  # of processors

_CHATML = """\
{%- for message in messages -%}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' ~ message.content.strip() ~ '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""
_MISTRAL = """\
{%- set chat = namespace(system='', turn='user') -%}
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message.role == 'system' and loop.first -%}
        {%- set chat.system = message.content ~ '\\n\\n' -%}
    {%- elif message.role != chat.turn -%}
        {{- raise_exception('expected a message of the ' ~ chat.turn ~ ', got one of role ' ~ message.role) -}}
    {%- elif message.role == 'user' -%}
        {{- ' [INST] ' ~ chat.system ~ message.content ~ ' [/INST]' -}}
        {%- set chat.system = '' -%}
        {%- set chat.turn = 'assistant' -%}
    {%- else -%}
        {{- ' ' ~ message.content ~ eos_token -}}
        {%- set chat.turn = 'user' -%}
    {%- endif -%}
{%- endfor -%}
"""
_ALPACA = """\
{%- set titles = {'user': '### Instruction:\\n', 'user_context': '### Input:\\n', 'assistant': '### Response:\\n'} -%}
{%- for message in messages -%}
    {{- titles.get(message.role, '') ~ message.content.strip() -}}
    {%- if not loop.last or add_generation_prompt -%}
        {{- '\\n\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- titles.assistant -}}
{%- endif -%}
"""
_EXAONE = """\
{%- if messages and messages[0].role != 'system' -%}
    {{- '[|system|][|endofturn|]\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {{- '[|' ~ message.role ~ '|]' ~ message.content -}}
    {{- '\\n' if message.role == 'user' else '[|endofturn|]\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '[|assistant|]' -}}
{%- endif -%}
"""
KNOWN = {"alpaca": _ALPACA, "chatml": _CHATML, "exaone": _EXAONE, "llama3": _LLAMA3, "mistral": _MISTRAL}


def chosen_template(recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> str | None:
    """The template that the recipe asks for; None where the host's stays, or `auto` finds none."""
    asked = recipe.chat_template
    if asked != "auto":
        return None if asked is None else KNOWN.get(asked, asked)
    models = dict.fromkeys((*recipe.inputs(), *recipe.bases()))
    found = [template for model in models if (template := template_of(stored(checkpoints[model])))]
    return Counter(found).most_common(1)[0][0] if found else None


def template_warnings(recipe: Recipe, host: Checkpoint, template: str | None) -> list[str]:
    """What the reader of a plan should know about it."""
    where = recipe.where("chat_template")
    if recipe.chat_template in KNOWN and is_multimodal(host.config):
        return [f"{where}: {recipe.chat_template} has no place for images; the result's processor may need one"]
    if recipe.chat_template is not None and template is None:
        return [f"{where}: none of the models has a chat template"]
    return []


def template_of(checkpoint: Checkpoint) -> str | None:
    """A model's own default template, without white space around it."""
    if JINJA in checkpoint.sidecars:
        return checkpoint.sidecars[JINJA].decode("utf-8", "replace").strip() or None
    for file in (TOKENIZER_CONFIG, LEGACY):
        if file in checkpoint.sidecars:
            said = parse_object(checkpoint.sidecars[file], f"{checkpoint.name}/{file}").get("chat_template")
            named = [one for item in as_list(said) or [] if (one := as_object(item))]
            template = next((one.get("template") for one in named if one.get("name") == "default"), said)
            if isinstance(template, str) and template.strip():
                return template.strip()
    return None


def with_template(files: Mapping[str, bytes], template: str) -> dict[str, bytes]:
    """A result's sidecars with this template and no other."""
    others = {name for name in files if name.startswith(f"{CHAT_TEMPLATES}/")} | {LEGACY}
    written = {name: content for name, content in files.items() if name not in others}
    written[JINJA] = template.encode("utf-8", "surrogatepass")
    if TOKENIZER_CONFIG in written:
        config: dict[str, Any] = parse_object(written[TOKENIZER_CONFIG], TOKENIZER_CONFIG)
        written[TOKENIZER_CONFIG] = dump_like({**config, "chat_template": template}, written[TOKENIZER_CONFIG])
    return written
