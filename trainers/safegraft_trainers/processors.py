"""Loads the processor of a vision-language model, where torchvision is not installed too.

Many families take videos, and transformers' video processors need torchvision. safegraft shows models images alone, so
without torchvision such a processor is loaded in memory with its video part put by; what is saved again still has that
part's settings. Knows nothing of models.
"""

# transformers types its processors in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# The one place where it puts their parts together has no public name.
# pyright: reportPrivateUsage=false

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from safegraft.errors import UsageError

VIDEO = "video_processor"
VIDEO_FILE = "video_preprocessor_config.json"


def load_processor(reference: str | Path, config: Any, **where: Any) -> Any:
    """The processor of a folder or a Hub model. config: the model's. where: revision, local_files_only.

    Raises what transformers raises.
    """
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils.import_utils import is_torchvision_available

    kind: Any = transformers.AutoProcessor
    if not is_torchvision_available() and type(config) in PROCESSOR_MAPPING:
        usual: Any = PROCESSOR_MAPPING[type(config)]
        kind = without_videos(usual) if VIDEO in usual.get_attributes() else kind
    return kind.from_pretrained(reference, trust_remote_code=False, **where)


class NoVideos(dict[str, Any]):
    """A video processor's settings, in its place."""

    _auto_class: ClassVar[None] = None  # transformers asks every part whether a stranger's code comes with it

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise UsageError("videos need torchvision: pip install torchvision")


def without_videos(kind: Any) -> Any:
    """A processor class like `kind` that loads everything but the video processor."""
    attributes: Sequence[str] = kind.get_attributes()
    others = [name for name in attributes if name != VIDEO]

    class OtherParts(kind):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return others

    class ImagesOnly(kind):
        @classmethod
        def _get_arguments_from_pretrained(cls, name: Any, processor_dict: Any = None, **kwargs: Any) -> list[Any]:
            loaded = OtherParts._get_arguments_from_pretrained(name, processor_dict, **kwargs)
            parts = dict(zip(others, loaded, strict=True))
            parts[VIDEO] = NoVideos((processor_dict or {}).get(VIDEO) or _video_settings(name, **kwargs))
            return [parts[attribute] for attribute in attributes]

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == VIDEO:
                return NoVideos
            return super().check_argument_for_proper_class(argument_name, argument)

    # transformers writes the name of the class into what it saves, and looks at it here and there.
    OtherParts.__name__ = ImagesOnly.__name__ = kind.__name__
    return ImagesOnly


def _video_settings(name: Any, revision: str | None = None, local_files_only: bool = False, **_: Any) -> dict[str, Any]:
    from transformers.utils.hub import cached_file

    file = cached_file(
        name,
        VIDEO_FILE,
        revision=revision,
        local_files_only=local_files_only,
        _raise_exceptions_for_missing_entries=False,
    )
    return json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
