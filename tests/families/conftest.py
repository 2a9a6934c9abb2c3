"""The zoo: tiny random checkpoints of every LVLM family, the LLMs they are made from, and what merging them must give.

Which families there are and how they are built is data: `zoo.yaml`. The expected results come from
transformers' own module structure and never from safegraft's alignment.
"""

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from safegraft.engine.folder import write_folder
from safegraft.engine.plan import make_plan
from safegraft.engine.task import Plan
from safegraft.local import open_model
from safegraft.methods.registry import Registry
from safegraft.recipe import read_recipe

ZOO = yaml.safe_load(Path(__file__).with_name("zoo.yaml").read_text())
SIZES: dict[str, dict[str, Any]] = ZOO["sizes"]

HOST_ROWS: int = SIZES["text"]["vocab_size"]
LLM_ROWS = HOST_ROWS - 6
LLM_TOKENS = [f"word{number}" for number in range(LLM_ROWS - 2)]  # the last two rows are padding
IMAGE_TOKENS = ["<image>", "<video>", "<pad>"]

Tokens = dict[str, int]
Tensors = dict[str, torch.Tensor]
Mix = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Family:
    """A row of zoo.yaml, which explains the fields."""

    name: str
    host: str
    llm: str | None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    llm_config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tied: bool = False
    twin: bool = False
    decoder: str = "model.language_model"
    head: str = "lm_head"
    backbone: str = "model"
    modules: tuple[tuple[str, str], ...] = ()
    tokens: str = "extended"
    dtype: str = "float32"
    on_disk: tuple[tuple[str, str], ...] = ()
    vocabulary: tuple[str, ...] = ()
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    refused: str = ""

    @property
    def llm_rows(self) -> int:
        return HOST_ROWS if self.tokens == "position" else LLM_ROWS

    @property
    def sizes(self) -> Mapping[str, Mapping[str, Any]]:
        """zoo.yaml's sizes by role, with this family's ties and vision tower."""
        tie = {"tie_word_embeddings": self.tied}
        vision = SIZES["twin" if self.twin else "vision"]
        return {**SIZES, "top": {**SIZES["top"], **tie}, "text": {**SIZES["text"], **tie}, "vision": vision}

    def host_tokens(self) -> Tokens | None:
        words = [*LLM_TOKENS, *IMAGE_TOKENS]
        if self.tokens == "permuted":
            Random(self.name).shuffle(words)
        return None if self.tokens == "position" else {word: row for row, word in enumerate(words)}

    def llm_tokens(self) -> Tokens | None:
        return None if self.tokens == "position" else {word: row for row, word in enumerate(LLM_TOKENS)}

    def host_config(self, **changes: Any) -> PreTrainedConfig:
        return tiny_config(CONFIG_MAPPING[self.host], "top", {**self.config, **changes}, self.sizes)

    def text_config(self, **changes: Any) -> PreTrainedConfig:
        assert self.llm is not None
        kind = CONFIG_MAPPING[self.llm]
        shared = {key: value for key, value in self.config.get("text_config", {}).items() if key in fields_of(kind)}
        values = {**shared, "vocab_size": self.llm_rows, **self.llm_config, **changes}
        return tiny_config(kind, "text", values, self.sizes)


FAMILIES = [Family(**{"name": name, "host": name, **row}) for name, row in ZOO["families"].items()]


def tiny_config(
    kind: type[PreTrainedConfig], role: str, changes: Mapping[str, Any], sizes: Mapping[str, Mapping[str, Any]]
) -> PreTrainedConfig:
    """A config of class `kind`: the sizes of its role as far as it has such fields, then `changes`."""
    if role == "top" and "text_config" not in kind.sub_configs:
        role = "text"  # a flat config: the language model's sizes stand beside the parts
    fields = fields_of(kind)
    values = {key: value for key, value in sizes[role].items() if key in fields}
    changes = dict(changes)
    for part, part_kind in kind.sub_configs.items():
        part_changes = dict(changes.pop(part, {}))
        model_type = part_changes.pop("model_type", None)
        if part_kind is AutoConfig:
            default = getattr(kind(), part)
            if model_type is None and default is None:
                continue  # a part that the family may have and this one has not
            part_kind = CONFIG_MAPPING[model_type or default.model_type]
        values[part] = tiny_config(part_kind, role_of(part), part_changes, sizes)
    return kind(**{**values, **changes})


def fields_of(kind: type[PreTrainedConfig]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def role_of(part: str) -> str:
    """Which of zoo.yaml's sizes a part of a config takes."""
    roles = {"thinker_config": "top", "talker_config": "text"}
    return roles.get(part) or next((role for role in ("text", "vision") if role in part), "other")


@dataclass(frozen=True, eq=False)
class Specimen:
    """A checkpoint on disk, the model it was saved from, and its tokenizer's vocabulary."""

    folder: Path
    model: PreTrainedModel
    tokens: Tokens | None

    @property
    def reference(self) -> str:
        """How a recipe names it."""
        return str(self.folder)


@dataclass(frozen=True)
class Counterpart:
    """An LLM's tensor, and for vocabulary tensors the rows (the host's, the LLM's) of the tokens that both have."""

    tensor: torch.Tensor
    rows: tuple[list[int], list[int]] | None

    def mix_into(self, ours: torch.Tensor, mix: Mix) -> None:
        if self.rows is None:
            ours.copy_(mix(ours, self.tensor))
        else:
            ours[self.rows[0]] = mix(ours[self.rows[0]], self.tensor[self.rows[1]])


class Zoo:
    """Builds specimens on first use and keeps them for the session."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.specimens: dict[str, Specimen] = {}

    def host(self, family: Family, seed: int = 1) -> Specimen:
        return self.keep(f"{family.name}-{seed}", family, family.host_config, family.host_tokens(), seed)

    def llm(self, family: Family, seed: int = 2, **changes: Any) -> Specimen:
        name = "-".join([family.name, "llm", str(seed), *(f"{key}={value}" for key, value in changes.items())])
        return self.keep(name, family, lambda: family.text_config(**changes), family.llm_tokens(), seed)

    def keep(
        self, name: str, family: Family, config: Callable[[], PreTrainedConfig], tokens: Tokens | None, seed: int
    ) -> Specimen:
        if name not in self.specimens:
            built = config()
            is_llm = built.model_type == family.llm
            auto = AutoModelForCausalLM if is_llm else AutoModelForMultimodalLM
            model = auto.from_config(built, dtype=getattr(torch, family.dtype)).eval()
            scramble(model, seed)
            folder = self.root / name
            self.save(model, folder, () if is_llm else family.on_disk, tokens)
            self.specimens[name] = Specimen(folder, model, tokens)
        return self.specimens[name]

    def save(
        self, model: PreTrainedModel, folder: Path, on_disk: tuple[tuple[str, str], ...], tokens: Tokens | None
    ) -> None:
        """save_pretrained, then the family's own names on disk, and a tokenizer beside it."""
        model.save_pretrained(folder)
        if on_disk:
            file = folder / "model.safetensors"
            tensors = {renamed(name, on_disk): tensor for name, tensor in load_file(file).items()}
            save_file(tensors, file, {"format": "pt"})
        if tokens is not None:
            Tokenizer(WordLevel(tokens, unk_token="word0")).save(str(folder / "tokenizer.json"))

    def counterparts(self, family: Family, host: Specimen, llm: Specimen) -> dict[str, Counterpart]:
        """By the host's names in memory: what the LLM has for each weight of the language model."""
        embedding = llm.model.get_input_embeddings().weight
        found: dict[str, Counterpart] = {}
        for name, tensor in llm.model.get_submodule(family.backbone).state_dict().items():
            has_rows = tensor.data_ptr() == embedding.data_ptr() or name in family.vocabulary
            place = f"{family.decoder}.{renamed(name, family.modules)}"
            found[place] = Counterpart(tensor, rows_of(host, llm) if has_rows else None)
        if not family.tied:
            head = llm.model.get_output_embeddings().weight.detach()
            found[f"{family.head}.weight"] = Counterpart(head, rows_of(host, llm))
        return found

    def grafted(self, family: Family, host: Specimen, llm: Specimen, mix: Mix) -> PreTrainedModel:
        """The host with `mix(host tensor, LLM tensor)` in place of each weight of its language model."""
        model = copy.deepcopy(host.model)
        state = model.state_dict()
        for name, theirs in self.counterparts(family, host, llm).items():
            theirs.mix_into(state[name], mix)
        return model

    def mixed(self, host: Specimen, other: Specimen, mix: Mix) -> PreTrainedModel:
        """The host with `mix(host tensor, other tensor)` in place of every weight: two models of one family."""
        model = copy.deepcopy(host.model)
        theirs = other.model.state_dict()
        seen: set[int] = set()
        for name, ours in model.state_dict().items():
            if ours.is_floating_point() and ours.data_ptr() not in seen:  # tied weights appear twice
                seen.add(ours.data_ptr())
                Counterpart(theirs[name], None).mix_into(ours, mix)
        return model

    def bytes_of(self, folder: Path) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
        """Every tensor on disk, for comparison to the bit."""
        found = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
        return {name: (tensor.dtype, tensor.shape, raw(tensor)) for name, tensor in found.items()}

    @staticmethod
    def recipe(method: str, weights: Mapping[Specimen, float], **keys: Any) -> dict[str, Any]:
        models = [{"model": one.reference, "parameters": {"weight": weight}} for one, weight in weights.items()]
        return {"merge_method": method, "models": models, **keys}

    @staticmethod
    def average(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        """What `linear` with equal weights must give, to the bit."""
        return ((ours.float() + theirs.float()) / 2).to(ours.dtype)

    def assert_merged(self, family: Family, out: Path, expected: PreTrainedModel) -> None:
        """The folder holds `expected` in the family's naming, to the bit, and loads."""
        wanted = out.with_name("expected")
        self.save(expected, wanted, family.on_disk, None)
        assert self.bytes_of(out) == self.bytes_of(wanted)
        _, info = AutoModelForMultimodalLM.from_pretrained(out, output_loading_info=True)
        assert {problem: keys for problem, keys in info.items() if keys} == {}

    def logits(self, family: Family, model: PreTrainedModel) -> torch.Tensor:
        """A forward pass over a few words, with an image where the family cannot do without."""
        inputs = {"input_ids": torch.arange(3, 11)[None], "attention_mask": torch.ones(1, 8, dtype=torch.long)}
        for name, value in family.inputs.items():
            if isinstance(value, list):
                inputs[name] = torch.linspace(-1, 1, torch.Size(value).numel()).reshape(value)
            else:
                inputs[name] = torch.tensor(value["values"])
        torch.manual_seed(0)  # some families decode from noise
        with torch.no_grad():
            return model(**inputs, use_cache=False).logits


def scramble(model: PreTrainedModel, seed: int) -> None:
    """Give every weight a value of its own; norms, biases and gates begin as ones and zeros."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=generator).to(tensor.dtype), alpha=0.05)


def rows_of(host: Specimen, llm: Specimen) -> tuple[list[int], list[int]] | None:
    """Rows of the host and of the LLM that stand for the same token; None: all rows, by position."""
    if host.tokens is None or llm.tokens is None:
        return None
    shared = [token for token in host.tokens if token in llm.tokens]
    return [host.tokens[token] for token in shared], [llm.tokens[token] for token in shared]


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def renamed(name: str, rewrites: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rewrites:
        name = re.sub(pattern, replacement, name)
    return name


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])


@pytest.fixture(scope="session")
def families() -> Mapping[str, Family]:
    return {family.name: family for family in FAMILIES}


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are so small that threads only wait for each other
    yield Zoo(tmp_path_factory.mktemp("zoo"))
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def plan_of() -> Callable[[Mapping[str, Any]], Plan]:
    registry = Registry.discover()
    return lambda recipe: make_plan(read_recipe(recipe), open_model, registry)


@pytest.fixture
def merge(plan_of: Callable[[Mapping[str, Any]], Plan]) -> Callable[[Mapping[str, Any], Path], Plan]:
    """Plan and write; the plan comes back closed."""

    def run(recipe: Mapping[str, Any], out: Path) -> Plan:
        plan = plan_of(recipe)
        write_folder(plan, out, threads=1)
        plan.close()
        return plan

    return run
