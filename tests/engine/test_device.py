"""An accelerator without one: a device whose tensors may not meet the host's, as on a GPU, and which computes as the
processor does. Every line of the engine's and of the methods' is run but those of the class Cuda."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

import safegraft
from safegraft.engine import device as device_module
from safegraft.engine import execute
from safegraft.engine.device import Accelerator, Backend
from safegraft.engine.execute import MergedCheckpoint
from safegraft.errors import NonFiniteError, UsageError
from safegraft.methods.contract import MergeMethod
from safegraft.methods.registry import Registry
from safegraft.testing import tiny_llm, tiny_lvlm, words

THERE = torch.device("cpu", 0)  # torch computes on the processor, and yet tells it from plain "cpu"
HERE = torch.device("cpu")
MAY_MIX = {"copy_", "cpu", "to", "__get__", "item", "__float__", "__bool__", "is_nonzero"}


def is_there(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and getattr(value, "_is_there", False)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors_in(one)


def mark(value: Any) -> Any:
    for tensor in tensors_in(value):
        tensor._is_there = True  # pyright: ignore[reportAttributeAccessIssue]
    return value


class Strict(TorchFunctionMode):
    """What a GPU would refuse is refused: tensors of both memories in one operation, numpy on the device's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name == "__get__" and func.__self__ is torch.Tensor.device:
            return THERE if is_there(args[0]) else HERE
        given = list(tensors_in([*args, *kwargs.values()]))
        there = [one for one in given if is_there(one)]
        if name in ("numpy", "__array__") and there:
            raise TypeError("can't convert a device tensor to numpy: copy it to the host first")
        if name not in MAY_MIX and there and any(not is_there(one) and one.dim() > 0 for one in given):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device")
        result = func(*args, **kwargs)
        if name == "copy_":
            return result
        target = THERE if there else None
        if name == "cpu":
            target = None
        elif name == "to":
            target = next((one for one in [*args[1:], *kwargs.values()] if isinstance(one, torch.device)), target)
            others = [one for one in args[1:] if isinstance(one, torch.Tensor)]
            target = THERE if others and is_there(others[0]) else target
        elif "device" in kwargs and kwargs["device"] is not None:
            target = torch.device(kwargs["device"])
        if name in ("cpu", "to") and is_there(result) != (target == THERE):
            result = result.clone()  # of the processor's own tensors, these return the tensor itself
        return mark(result) if target == THERE else result


class Fake(Backend):
    device = THERE

    def __init__(self) -> None:
        self.recorded = 0

    def pinned(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def stream(self) -> Any:
        return self

    def within(self, stream: Any) -> contextlib.AbstractContextManager[Any]:
        assert stream is self
        return Strict()

    def event(self) -> "Fake":
        return self

    def record(self, stream: Any) -> None:
        assert stream is self
        self.recorded += 1

    def synchronize(self) -> None:
        pass


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """What `device="cuda"` gets."""
    fake = Fake()
    monkeypatch.setattr(device_module, "backend_of", lambda name: fake if name == "cuda" else None)
    return fake


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    for seed, name in enumerate(("base", "one", "two", "aligned", "unaligned", "harmful", "safety_tuned")):
        tiny_llm(folder / name, seed=seed, dtype=torch.bfloat16)
    tiny_lvlm(folder / "lvlm", seed=9, dtype=torch.bfloat16)
    return folder


REQUIRED = {"weight": 0.5, "t": 0.3, "density": 0.6}
METHODS = {
    name: method
    for name in Registry.discover().names()
    if (method := Registry.discover().get(name)) is not None
    and not method.requires.calibration
    and not name.startswith("mergekit:")
}


def required(parameters: Any) -> dict[str, Any]:
    """Values for what has no default."""
    fields = parameters.model_fields.items()
    return {field.alias or name: REQUIRED.get(name, 0.5) for name, field in fields if field.is_required()}


def recipe_for(method: MergeMethod, zoo: Path, first: str = "one") -> dict[str, Any]:
    """Two inputs where it takes them, a base where it wants one, and all its roles."""
    wants = method.requires
    count = min(2, wants.max_inputs or 2)
    own = required(method.InputParameters)
    if "density" in method.InputParameters.model_fields:
        own["density"] = 0.6
    names = [first, "two"][:count]
    models: list[dict[str, Any]] = [{"model": str(zoo / name), "parameters": own} for name in names]
    models += [{"model": str(zoo / role), "role": role} for role in wants.roles]
    recipe: dict[str, Any] = {
        "merge_method": method.name,
        "models": models,
        "parameters": required(method.Parameters),
        "host_model": str(zoo / first),
    }
    if wants.base in ("required", "optional"):
        recipe["base_model"] = str(zoo / "base")
    return recipe


def results(recipe: dict[str, Any], device: str) -> dict[str, torch.Tensor]:
    with MergedCheckpoint(safegraft.plan(recipe), compiled=False, device=device, threads=2, owns_plan=True) as merged:
        return dict(merged.tensors)


def ulps_apart(one: torch.Tensor, other: torch.Tensor) -> int:
    bits = [tensor.contiguous().view(torch.int16).int() for tensor in (one, other)]
    ordered = [torch.where(each < 0, -32768 - each, each) for each in bits]
    return int((ordered[0] - ordered[1]).abs().max())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_within_an_ulp(name: str, zoo: Path, accelerator: Fake) -> None:
    recipe = recipe_for(METHODS[name], zoo)
    here, there = results(recipe, "cpu"), results(recipe, "cuda")
    assert accelerator.recorded > 0
    assert {
        tensor: ulps_apart(here[tensor], there[tensor])
        for tensor in here
        if ulps_apart(here[tensor], there[tensor]) > 1
    } == {}


@pytest.mark.parametrize("name", ["linear", "ties", "dare_ties", "della"])
def test_rows_of_a_vocabulary_and_parts_of_the_lvlm(name: str, zoo: Path, accelerator: Fake) -> None:
    recipe = recipe_for(METHODS[name], zoo, first="lvlm")
    here, there = results(recipe, "cpu"), results(recipe, "cuda")
    assert all(ulps_apart(here[tensor], there[tensor]) <= 1 for tensor in here)


def test_modifiers_and_casts(zoo: Path, accelerator: Fake) -> None:
    recipe = recipe_for(METHODS["task_arithmetic"], zoo) | {
        "modifiers": [{"name": "lines", "parameters": {"alpha": 0.2, "beta": 0.4}}],
        "dtype": "float16",
        "out_dtype": "bfloat16",
    }
    here, there = results(recipe, "cpu"), results(recipe, "cuda")
    assert all(ulps_apart(here[tensor], there[tensor]) <= 1 for tensor in here)


def test_statistics_of_models_at_work(zoo: Path, accelerator: Fake, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SAFEGRAFT_CACHE", str(tmp_path / "cache"))
    known = list(words(20))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"prompt": known[at], "response": known[at + 5]}) for at in range(6)))
    for name in ("fisher", "regmean"):
        method = Registry.discover().get(name)
        assert method is not None
        recipe = recipe_for(method, zoo) | {
            "calibration": {"task": {"data": str(rows), "prompt": "prompt", "response": "response"}}
        }
        here, there = results(recipe, "cpu"), results(recipe, "cuda")
        assert all(ulps_apart(here[tensor], there[tensor]) <= 1 for tensor in here)


@pytest.mark.parametrize("on_nan", ["error", "host"])
def test_nan_is_found_there_too(zoo: Path, accelerator: Fake, tmp_path: Path, on_nan: str) -> None:
    from safetensors.torch import load_file, save_file

    broken = tiny_llm(tmp_path / "broken", seed=1, dtype=torch.bfloat16)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    recipe = recipe_for(METHODS["linear"], zoo) | {"on_nan": on_nan}
    recipe["models"][1]["model"] = str(broken)
    if on_nan == "error":
        with pytest.raises(NonFiniteError, match=r"up_proj.weight holds NaN or inf \(1 values"):
            results(recipe, "cuda")
    else:
        here, there = results(recipe, "cpu"), results(recipe, "cuda")
        assert all(torch.equal(here[tensor], there[tensor]) for tensor in here)


def test_machine_code_is_the_processors(zoo: Path, accelerator: Fake) -> None:
    recipe = recipe_for(METHODS["linear"], zoo)
    with MergedCheckpoint(safegraft.plan(recipe), device="cuda", owns_plan=True) as merged:
        merged.files["model.safetensors"].read()
    assert accelerator.recorded > 0


def test_too_little_memory_is_told(zoo: Path, accelerator: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(METHODS["linear"]), "merge", full)
    with pytest.raises(UsageError, match=r"too little memory for method linear on .*fewer --threads"):
        results(recipe_for(METHODS["linear"], zoo), "cuda")


def test_the_fake_refuses_what_a_gpu_refuses() -> None:
    with Strict():
        there = torch.zeros(3).to(THERE)
        for wrong in (lambda: there + torch.ones(3), lambda: there.numpy(), lambda: torch.cat([there, torch.ones(1)])):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()
        assert (there + torch.tensor(1.0)).device == THERE
        assert there.cpu().numpy().tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", r"cuda cannot be used: this torch \(.*\) says that it is built for CPUs. Install a build of torch"),
        ("tpu", "tpu is not a device that can merge: choose cpu, cuda or cuda:N"),
        ("meta", "meta is not a device that can merge"),
    ],
)
def test_devices_that_are_not_there(
    device: str, message: str, zoo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UsageError, match=message):
        safegraft.merge(recipe_for(METHODS["linear"], zoo), out=tmp_path / "out", device=device)
    with pytest.raises(UsageError, match=message):
        execute.usable(device)
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=r"cuda:2 is not there: torch sees 2 GPU\(s\), cuda:0 to cuda:1"):
        device_module.backend_of("cuda:2")
    found = device_module.backend_of("cuda:1")
    assert found is not None
    assert str(found.device) == "cuda:1"
    assert device_module.backend_of("cpu") is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", METHODS)
def test_a_real_gpu_within_an_ulp(name: str, zoo: Path) -> None:
    recipe = recipe_for(METHODS[name], zoo)
    here, there = results(recipe, "cpu"), results(recipe, "cuda")
    assert max(ulps_apart(here[tensor], there[tensor]) for tensor in here) <= 1


def test_stages_are_filled_in_turn() -> None:
    """The one being filled is not the one on its way."""
    place = Accelerator(Fake())
    addresses: list[int] = []

    def read(view: memoryview) -> None:
        addresses.append(torch.frombuffer(view, dtype=torch.uint8).data_ptr())
        view[:] = bytes(len(view))

    into = torch.ones(8)
    for _ in range(4):
        place.load(read, torch.bfloat16, torch.bfloat16, into)
    assert into.tolist() == [0] * 8
    assert addresses[0] == addresses[2] != addresses[1] == addresses[3]
