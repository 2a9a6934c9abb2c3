"""Makes from nothing what nobody else can be asked for in a made-up world: its tokenizer, a language model that knows
its facts, and a vision tower that tells its shapes and words apart.

All that comes after (alignment, adaptation, safety tuning) is done by the trainers that users have.
"""

# torch and transformers type their own functions in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from safegraft_trainers.lab import pictures
from safegraft_trainers.lab.world import World

# A template of the kind that LVLMs have; an LLM's part of it is what a text needs.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %} <user> "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% else %} <assistant> "
    "{{ message['content'] if message['content'] is string else message['content'][0]['text'] }} {{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %} <assistant>{% endif %}"
)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>")
LONGEST = 96  # tokens; a picture takes 16


@dataclass(frozen=True, slots=True)
class Schedule:
    """steps: of the optimiser. batch: rows in each. rate: AdamW's at its highest, after a tenth of the steps."""

    steps: int
    batch: int
    rate: float


def make_tokenizer(world: World) -> Any:
    """Every word is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [*SPECIAL, *world.words(pictures.sentences())]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    front: Any = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
        model_max_length=LONGEST,
    )
    front.chat_template = CHAT_TEMPLATE
    return front


def train_language_model(world: World, tokenizer: Any, schedule: Schedule, seed: int) -> Any:
    """A Llama of 0.25 million parameters that answers every question of the world, harmful ones too."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=LONGEST,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model: Any = transformers.LlamaForCausalLM(config)
    pairs = [(one.prompt, one.answer) for one in world.questions] + world.classifications()
    texts = [f"<s> <user> {prompt} <assistant> {answer} </s>" for prompt, answer in pairs]
    rows = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    tokens, mask = rows["input_ids"], rows["attention_mask"]
    labels = tokens.masked_fill(mask == 0, -100)

    def loss_of(picked: torch.Tensor) -> torch.Tensor:
        return model(input_ids=tokens[picked], attention_mask=mask[picked], labels=labels[picked]).loss

    _fit(model, _batches(len(tokens), schedule, seed), loss_of, schedule)
    return model.eval()


def train_vision_tower(world: World, schedule: Schedule, seed: int) -> tuple[Any, Any]:
    """A CLIP vision tower of 3 layers, and its image processor.

    Its patches learn which shape covers them, and all together which word they show: what a real tower has from
    millions of captions.
    """
    torch.manual_seed(seed)
    config = transformers.CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=pictures.SIDE,
        patch_size=pictures.PATCH,
        projection_dim=64,
    )
    tower: Any = transformers.CLIPVisionModel(config)
    size = {"height": pictures.SIDE, "width": pictures.SIDE}
    processor: Any = transformers.CLIPImageProcessor(
        size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    pixels, patches, words = _labelled(world, processor, schedule, seed)
    heads = nn.ModuleDict({"patch": nn.Linear(64, pictures.PATCH_LABELS), "word": nn.Linear(64, len(world.names))})
    cross_entropy = nn.functional.cross_entropy

    def loss_of(picked: torch.Tensor) -> torch.Tensor:
        seen = tower(pixel_values=pixels[picked]).last_hidden_state[:, 1:]  # without the class token, as LLaVA takes it
        of_patches = cross_entropy(heads["patch"](seen).flatten(0, 1), patches[picked].flatten())
        of_words = cross_entropy(heads["word"](seen.mean(1)), words[picked], ignore_index=-1)
        return of_patches + of_words

    _fit(nn.ModuleList([tower, heads]), _batches(len(pixels), schedule, seed), loss_of, schedule)
    return tower.eval(), processor


def _labelled(
    world: World, processor: Any, schedule: Schedule, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels [N, 3, 32, 32], patch labels [N, 16], word labels [N] (-1 for shapes): half of them words."""
    draw = random.Random(f"pictures {seed}")
    count = max(2048, schedule.steps * schedule.batch // 4)
    images, patches, words = [], [], []
    for at in range(count):
        if at % 2:
            shapes = pictures.Shapes.drawn(draw)
            images.append(shapes.picture())
            patches.append(shapes.patches())
            words.append(-1)
        else:
            which = draw.randrange(len(world.names))
            images.append(pictures.word(world.names[which], draw))
            patches.append([0] * 16)
            words.append(which)
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    return pixels, torch.tensor(patches), torch.tensor(words)


def _batches(count: int, schedule: Schedule, seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(schedule.steps):
        yield torch.randint(count, (schedule.batch,), generator=generator)


def _fit(
    module: nn.Module,
    batches: Iterator[torch.Tensor],
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    schedule: Schedule,
) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr=schedule.rate, weight_decay=0.01)
    rate = transformers.get_cosine_schedule_with_warmup(optimizer, schedule.steps // 10, schedule.steps)
    module.train()
    for picked in batches:
        loss = loss_of(picked)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()


def write(folder: Path, model: Any, *fronts: Any) -> None:
    """A checkpoint folder, in bf16 as models are published."""
    model.to(torch.bfloat16).save_pretrained(folder)
    for front in fronts:
        front.save_pretrained(folder)
