"""An LLM and a vision encoder become one vision-language model: LLaVA's architecture (arXiv 2304.08485).

The LLM's and the encoder's weights are taken as they are, bit for bit; the projector between them is new, and so are
embedding rows for the image token where the LLM has none to spare. Knows nothing of training.
"""

# transformers and torch type what is used here in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from dataclasses import dataclass
from typing import Any

from safegraft.errors import InputError, Problem
from safegraft_trainers.training.base import explained, load_for_training, refuse_gaps

IMAGE_TOKEN = "<image>"
_ROW_MULTIPLE = 64  # embedding rows are padded to it when some are added, as in LLaVA's own checkpoints
_ALIKE = 1e-3  # relative difference of logits between the LLM alone and in the joined model: rounding, no more

# Content parts become the text that the LLM's own template knows, an image its token and a line break.
_FLATTEN = """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is string or message['content'] is none or message['content'] is undefined -%}
{%- set flat.messages = flat.messages + [message] -%}
{%- else -%}
{%- set parts = namespace(text='') -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{%- set parts.text = parts.text + 'IMAGE_TOKEN' + ('' if loop.last else '\\n') -%}
{%- else -%}
{%- set parts.text = parts.text + part['text'] -%}
{%- endif -%}
{%- endfor -%}
{%- set flat.messages = flat.messages + [dict(message, content=parts.text)] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
""".replace("IMAGE_TOKEN", IMAGE_TOKEN)


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision encoder. patches: image features a picture gives. has_class_token: whether one more comes first."""

    model: Any
    image_processor: Any
    patch_size: int
    patches: int
    has_class_token: bool


def join(
    language_model: str, vision_model: str, model_config: Any, *, feature_layer: int = -2, template: str | None = None
) -> tuple[Any, Any]:
    """The joined model (LlavaForConditionalGeneration) and its processor.

    language_model, vision_model: folders or Hub names; of a CLIP or SigLIP pair the vision half is taken.
    model_config: trl.ModelConfig, for the LLM. feature_layer: which hidden states of the encoder are seen (LLaVA: -2).
    template: a chat template for an LLM that has none.
    The projector's weights come from torch's random numbers: set a seed first.
    Raises CheckpointError when one does not load, InputError when the two cannot be joined.
    """
    llm, tokenizer = load_for_training(language_model, model_config)
    if getattr(tokenizer, "tokenizer", None) is not None:
        raise InputError(Problem(language_model, "sees images already: continue its training by --model_name_or_path"))
    tokenizer.chat_template = image_template(template or tokenizer.chat_template, language_model)
    tower = load_tower(vision_model, llm.dtype)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    model = _assemble(llm, tower, image_token_id, feature_layer, language_model)
    return model, _processor(tower, tokenizer)


def image_template(template: Any, name: str) -> str:
    """The LLM's chat template behind a part that turns lists of content parts into text. Raises InputError."""
    if not isinstance(template, str):
        message = "has no chat template of its own; give one by --chat_template_path FILE.jinja"
        raise InputError(Problem(name, message))
    return _FLATTEN + template


def load_tower(name: str, dtype: Any) -> Tower:
    """A vision encoder and how it cuts images. Raises CheckpointError, InputError."""
    import torch
    import transformers

    config_of: Any = transformers.AutoConfig
    model_of: Any = transformers.AutoModel
    image_processor_of: Any = transformers.AutoImageProcessor
    with explained(name):
        whole = config_of.from_pretrained(name, trust_remote_code=False)
        config = getattr(whole, "vision_config", whole)
        kind = model_of._model_mapping[type(config)]
        model, report = kind.from_pretrained(name, config=config, dtype=dtype, output_loading_info=True)
        image_processor = image_processor_of.from_pretrained(name, trust_remote_code=False)
    refuse_gaps(name, report)
    pixels = image_processor(_grey(), return_tensors="pt")["pixel_values"]
    with torch.no_grad(), explained(name):
        seen = model(pixel_values=pixels.to(dtype)).last_hidden_state.shape[1]
    height, width = pixels.shape[-2:]
    patches = (height // config.patch_size) * (width // config.patch_size)
    if seen not in (patches, patches + 1):
        message = f"gives {seen} features for {patches} patches of an image: LLaVA's projector takes one a patch"
        raise InputError(Problem(name, message))
    return Tower(model, image_processor, config.patch_size, patches, seen == patches + 1)


def _grey() -> Any:
    from PIL import Image

    return Image.new("RGB", (64, 48), (128, 128, 128))


def _assemble(llm: Any, tower: Tower, image_token_id: int, feature_layer: int, name: str) -> Any:
    """Put the LLM's and the tower's own modules into an empty LLaVA."""
    import torch
    import transformers

    _make_room(llm, image_token_id)
    config = transformers.LlavaConfig(
        text_config=llm.config,
        vision_config=tower.model.config,
        image_token_index=image_token_id,
        image_seq_length=tower.patches,
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy="default" if tower.has_class_token else "full",
        tie_word_embeddings=bool(llm.config.tie_word_embeddings),
    )
    with torch.device("meta"):
        model: Any = transformers.LlavaForConditionalGeneration(config)
    if type(model.model.language_model) is not type(llm.base_model) or llm.base_model is llm:
        message = f"is a {type(llm).__name__}, whose body transformers does not put into a LLaVA"
        raise InputError(Problem(name, message))
    model.model.language_model = llm.base_model
    model.model.vision_tower = tower.model
    model.model.multi_modal_projector = type(model.model.multi_modal_projector)(config).to(llm.dtype)
    model.set_output_embeddings(llm.get_output_embeddings())
    model.config.dtype = llm.dtype
    parts: list[Any] = [config.text_config, config.vision_config]
    for part in parts:
        part.name_or_path = ""  # it would be published: where the part lay on this machine
    model.generation_config = llm.generation_config
    _compare(model, llm, name)
    return model


def _make_room(llm: Any, token: int) -> None:
    """An embedding row for `token`; new rows are the mean of the old, which no prompt confuses with a word."""
    import torch

    rows = llm.get_input_embeddings().weight.shape[0]
    if token < rows:
        return
    llm.resize_token_embeddings(token + 1, pad_to_multiple_of=_ROW_MULTIPLE, mean_resizing=False)
    with torch.no_grad():
        for layer in (llm.get_input_embeddings(), llm.get_output_embeddings()):
            layer.weight[rows:] = layer.weight[:rows].float().mean(0).to(layer.weight.dtype)


def _compare(model: Any, llm: Any, name: str) -> None:
    """Text must mean to the joined model what it means to the LLM: LLaVA has a plain output head and nothing after it.

    Raises InputError.
    """
    import torch

    ids = torch.arange(1, 9).unsqueeze(0) % llm.config.vocab_size
    with torch.no_grad():
        alone, joined = llm(input_ids=ids).logits.float(), model(input_ids=ids).logits.float()
    if (alone - joined).abs().max() > _ALIKE * alone.abs().max():
        message = f"{type(llm).__name__} does something to its logits that a LLaVA would leave out"
        raise InputError(Problem(name, f"{message}; it cannot be joined"))


def _processor(tower: Tower, tokenizer: Any) -> Any:
    import transformers

    return transformers.LlavaProcessor(
        image_processor=tower.image_processor,
        tokenizer=tokenizer,
        patch_size=tower.patch_size,
        vision_feature_select_strategy="default" if tower.has_class_token else "full",
        num_additional_image_tokens=1 if tower.has_class_token else 0,
        image_token=IMAGE_TOKEN,
        chat_template=tokenizer.chat_template,
    )
