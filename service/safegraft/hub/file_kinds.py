"""Which files of a repository are a model's, by their names: what is loaded, and what may lie beside it."""

import re

from safegraft.checkpoint.sidecars import collect_sidecars

_WEIGHTS = re.compile(
    r"(.*/)?([^/]+\.(safetensors|bin|pt|pth|ckpt|gguf|ggml|h5|msgpack|onnx|onnx_data|tflite|npz|pkl|pickle|mlmodel"
    r"|pdparams|keras|ot|nemo|zip|tar|tgz|gz|7z)"
    r"|[^/]+\.index\.json|adapter_config\.json)",
    re.IGNORECASE,
)
# What changes nothing that is loaded, even where a model's file could be called so: of git and the Hub, pictures,
# texts, evaluations, licences.
_INERT = re.compile(
    r"\.gitattributes|\.gitignore|(\.git|\.cache)/.*|evaluation[^/]*\.json|results\.json"
    r"|([^/]+/)?[^/]+\.(png|jpe?g|gif|svg|webp|pdf|md)|([^/]*[-_.])?(licen[cs]e|notice|use_policy)([-_.][^/]*)?",
    re.IGNORECASE,
)
_READ = re.compile(r".*\.(py|jinja|model)", re.IGNORECASE)
_MAY_BE_READ = re.compile(r".*\.(json|yaml|yml)", re.IGNORECASE)


def is_weights(name: str) -> bool:
    """Weights in any format, and what says where they are."""
    return _WEIGHTS.fullmatch(name) is not None


def is_loaded(name: str) -> bool:
    """Whether a file of this name may change what is loaded: weights, code, configs, tokenizers."""
    if is_weights(name) or _READ.fullmatch(name):
        return True
    if _INERT.fullmatch(name):
        return False
    return _MAY_BE_READ.fullmatch(name) is not None or bool(collect_sidecars([name]))
