"""Which files come along with a model, and how configs leave."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safegraft.checkpoint.dtypes import DType
from safegraft.checkpoint.sidecars import collect_sidecars, output_sidecars, sidecar_warnings, strip_auto_map
from safegraft.errors import CheckpointError

ALONG = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
    "qwen.tiktoken",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "image_processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "licence.txt",
    "LLAMA_LICENSE.pdf",
    "MODEL_LICENSE",
    "LICENSE-CODE",
    "NOTICE",
    "Notice.txt",
    "USE_POLICY.md",
    "COPYING",
]

BEHIND = [
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "consolidated.00.pth",
    "model.gguf",
    "model.onnx",
    "tf_model.h5",
    "flax_model.msgpack",
    "x.pt",
    "last.ckpt",
    "modeling_custom.py",
    "configuration_custom.py",
    "tokenizer.py",
    "processor.py",
    "LICENSE.py",
    "license.safetensors",
    "tokenizer.bin",
    "README.md",
    "safegraft.json",
    ".gitattributes",
    ".gitignore",
    ".config.json",
    ".jinja",
    "additional_chat_templates/.hidden.jinja",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "trainer_state.json",
    "events.out.tfevents.1",
    "all_results.json",
    "rng_state.pth",
    "adapter_config.json",
    "quantize_config.json",
    "dataset.json",
    "private_prompts.txt",
    "requirements.txt",
    "params.json",
    "log.txt",
    "additional_chat_templates/x.py",
    "additional_chat_templates/deep/x.jinja",
    "other/config.json",
    "other/tokenizer.json",
    "other/LICENSE",
    "../config.json",
    "/config.json",
]


def test_which_files_come_along():
    assert collect_sidecars([*ALONG, *BEHIND]) == sorted(ALONG)


@pytest.mark.parametrize("name", ["vocab\n.json", "vocab\udc80.json", "a\x1b[0m.jinja", "license\u202e.txt"])
def test_names_that_do_not_print_stay_behind(name):
    assert collect_sidecars([name]) == []


def test_content_is_read_as_it_is(folders):
    files = {"tokenizer.json": b"{not even json", "LICENSE": b"\xff\0", "additional_chat_templates/a.jinja": b"hi"}
    folder = folders.single(**files, **{"x.py": b"import os"})
    checkpoint = folders.open(folder)
    assert {name: content for name, content in checkpoint.sidecars.items() if name != "config.json"} == files


def test_too_large(folders, problems_of, monkeypatch):
    monkeypatch.setattr("safegraft.checkpoint.contents.MAX_SIDECAR_BYTES", 100)
    folder = folders.single(**{"vocab.json": b"x" * 101, "merges.txt": b"x" * 100})
    assert problems_of(lambda: folders.open(folder)) == [
        "tiny/vocab.json: has 101 bytes; more than 100 are not accepted for this kind of file"
    ]


def test_too_large_together(folders, problems_of, monkeypatch):
    monkeypatch.setattr("safegraft.checkpoint.contents.MAX_SIDECARS_BYTES", 150)
    folder = folders.single(**{"vocab.json": b"x" * 100, "merges.txt": b"x" * 100})
    assert any(
        "more than 150 bytes of files beside" in problem for problem in problems_of(lambda: folders.open(folder))
    )


# ---- auto_map

REMOTE = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XModel"}


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "processor_config.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
    ],
)
def test_auto_map_is_removed_at_any_depth(name):
    content = json.dumps(
        {"z": 1, "auto_map": REMOTE, "b_config": {"auto_map": {}, "keep": [{"auto_map": [], "x": 1.5e-5}]}}, indent=4
    ).encode()
    stripped = strip_auto_map(name, content)
    assert stripped == json.dumps({"z": 1, "b_config": {"keep": [{"x": 1.5e-5}]}}, indent=2).encode()
    assert strip_auto_map(name, stripped) is stripped


@pytest.mark.parametrize("content", [b'{"a":1}', b'  {"note": "auto_map"}\r\n', '{"ü": Infinity}'.encode()])
def test_config_without_auto_map_keeps_its_bytes(content):
    assert strip_auto_map("config.json", content) is content


def test_other_files_are_not_even_parsed():
    for name in ("tokenizer.json", "chat_template.json", "vocab.json", "LICENSE"):
        assert strip_auto_map(name, b'{"auto_map": 1') == b'{"auto_map": 1'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"auto_map":{},"a":"\\u00fc"}\n', b'{\n  "a": "\\u00fc"\n}\n'),
        ('{"auto_map":{},"a":"ü"}'.encode(), '{\n  "a": "ü"\n}'.encode()),
        ('{"auto_map":{},"a":"ü\\ud800"}'.encode(), b'{\n  "a": "\\u00fc\\ud800"\n}'),
        (
            b'{"auto_map":{},"a":[NaN,1000000000000000019884624838656]}',
            b'{\n  "a": [\n    NaN,\n    1000000000000000019884624838656\n  ]\n}',
        ),
    ],
)
def test_spelling_of_the_rest_is_kept(before, after):
    assert strip_auto_map("config.json", before) == after


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["auto_map", "a", "b_config", "ü"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def without(value):
    if isinstance(value, dict):
        return {key: without(inner) for key, inner in value.items() if key != "auto_map"}
    return [without(inner) for inner in value] if isinstance(value, list) else value


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(config=st.dictionaries(st.sampled_from(["auto_map", "a", "b_config"]), JSON), ascii_only=st.booleans())
def test_stripping_changes_nothing_else(config, ascii_only):
    content = json.dumps(config, ensure_ascii=ascii_only).encode()
    stripped = strip_auto_map("config.json", content)
    assert json.loads(stripped) == without(config)
    assert list(json.loads(stripped)) == [key for key in config if key != "auto_map"]


def test_broken_config_names_the_model():
    checkpoint = fake({"config.json": b"{}", "processor_config.json": b"{"})
    for call in (lambda: output_sidecars(checkpoint, None), lambda: sidecar_warnings(checkpoint)):
        with pytest.raises(CheckpointError, match=r"org/model/processor_config\.json: is not valid JSON"):
            call()


# ---- on the way out


def fake(sidecars):
    return SimpleNamespace(name="org/model", sidecars=sidecars, config=json.loads(sidecars["config.json"]))


def with_dtype(config, dtype):
    return json.loads(output_sidecars(fake({"config.json": json.dumps(config).encode()}), dtype)["config.json"])


def test_without_a_dtype_only_auto_map_goes():
    files = {"config.json": b'{"auto_map":{},"torch_dtype":"float16"}', "tokenizer.json": b"{}", "LICENSE": b"MIT"}
    assert output_sidecars(fake(files), None) == {**files, "config.json": b'{\n  "torch_dtype": "float16"\n}'}


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_dtype_is_set_in_the_key_that_is_there(key):
    assert with_dtype({"a": 1, key: "float16", "b": 2}, DType.BF16) == {"a": 1, key: "bfloat16", "b": 2}
    assert with_dtype({key: None}, DType.F32) == {key: "float32"}


def test_dtype_is_added_when_the_config_names_none():
    assert with_dtype({"a": 1}, DType.F16) == {"a": 1, "dtype": "float16"}


def test_nested_configs_get_a_dtype_only_where_they_have_one():
    config = {
        "dtype": "float32",
        "text_config": {"dtype": "float32", "rope": {"dtype": "float32"}},
        "vision_config": {"hidden_size": 1},
        "thinker_config": {"audio_config": {"torch_dtype": "float16"}},
    }
    assert with_dtype(config, DType.BF16) == {
        "dtype": "bfloat16",
        "text_config": {"dtype": "bfloat16", "rope": {"dtype": "float32"}},
        "vision_config": {"hidden_size": 1},
        "thinker_config": {"audio_config": {"torch_dtype": "bfloat16"}},
    }


def test_config_that_already_says_so_keeps_its_bytes():
    content = b'{ "torch_dtype":"bfloat16","text_config":{"dtype":"bfloat16"} }'
    assert output_sidecars(fake({"config.json": content}), DType.BF16)["config.json"] is content


def test_dtype_that_weights_cannot_have():
    with pytest.raises(ValueError, match="I64"):
        with_dtype({}, DType.I64)


def test_transformers_reads_the_dtype(tmp_path):
    from transformers import LlamaConfig

    for config in ({"torch_dtype": "float16"}, {"dtype": "float16"}, {}):
        (tmp_path / "config.json").write_text(json.dumps(with_dtype({"model_type": "llama", **config}, DType.BF16)))
        assert str(LlamaConfig.from_pretrained(tmp_path).dtype) == "torch.bfloat16"


# ---- warnings


def test_plain_models_need_no_warning():
    assert sidecar_warnings(fake({"config.json": b'{"model_type":"llama"}', "tokenizer_config.json": b"{}"})) == []


def test_remote_code_is_warned_of():
    config = json.dumps({"model_type": "custom_vl\n", "auto_map": REMOTE}).encode()
    tokenizer = json.dumps({"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}).encode()
    first, second = sidecar_warnings(fake({"config.json": config, "tokenizer_config.json": tokenizer}))
    assert "org/model brings its own architecture code" in first
    assert "'custom_vl\\n'" in first
    assert second == "org/model: auto_map (AutoTokenizer) is removed from tokenizer_config.json, its code too"


def test_remote_code_model_is_read_nevertheless(folders):
    folder = folders.single(**{"config.json": json.dumps({"auto_map": REMOTE, "model_type": "x"}).encode()})
    checkpoint = folders.open(folder)
    assert checkpoint.config["auto_map"] == REMOTE
    assert len(sidecar_warnings(checkpoint)) == 1
    assert b"auto_map" not in output_sidecars(checkpoint, None)["config.json"]
