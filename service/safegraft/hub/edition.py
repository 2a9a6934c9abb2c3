"""What is published of a result: its files, the card as it reads by then, and the safegraft.json that lists just these.

Decides whether the card says that the model was evaluated. Knows no Hub and sends nothing.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from safegraft.checkpoint.adapter import ADAPTER_CONFIG
from safegraft.checkpoint.hub_cache import HUB_NAME
from safegraft.checkpoint.strict_json import parse_object
from safegraft.engine.staging import MANIFEST, FileDigest
from safegraft.errors import UsageError
from safegraft.hub.card import UNEVALUATED
from safegraft.hub.evaluated import has_evaluation, has_warning, with_evaluation
from safegraft.hub.evaluation import EvaluationDocument
from safegraft.hub.markdown import code, listed
from safegraft.hub.results import CARD, Result, ResultFile
from safegraft.hub.snippets import addressed

PLOT = "trade-off.png"
EVALUATE_FIRST = (
    "publishing asks for an evaluation: run `safegraft evaluate` and give its results with --evaluation FILE; or "
    "publish with --unevaluated, and the card warns of it"
)
MAX_PLOT_BYTES = 16 << 20

_PNG = b"\x89PNG\r\n\x1a\n"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NO_DIGEST = FileDigest(0, "0" * 64)


class Edition:
    """One result, ready to be published.

    repository: where it is going to lie, "org/name".
    sent: what is known of large files by now.

    files: all but safegraft.json, in the order in which that lists them. extra: name -> content of those that the
    result does not have so: the card, the plot. evaluated: whether the card holds an evaluation. notes: what whoever
    publishes it should know.

    Raises UsageError when neither an evaluation nor `unevaluated` is given, InputError when the evaluation is of
    another model.
    """

    def __init__(
        self,
        result: Result,
        repository: str,
        *,
        evaluation: EvaluationDocument | None = None,
        unevaluated: bool = False,
        plot: bytes | None = None,
        evaluation_digest: str | None = None,
        sent: Mapping[str, FileDigest] = MappingProxyType({}),
    ) -> None:
        self.result = result
        self.notes: tuple[str, ...] = ()
        require_sense(evaluation, unevaluated, plot)
        if evaluation is not None:
            known = result.known_digests(sent)
            evaluation = evaluation.about(known, result.input_digests())
            doubt = evaluation.doubt(known)
            self.notes = (doubt,) if doubt else ()
            evaluation_digest = evaluation_digest or hashlib.sha256(evaluation.to_bytes()).hexdigest()
        card = addressed(_card(result, evaluation, unevaluated, PLOT if plot else None), repository)
        self.evaluated = has_evaluation(card)
        self.extra: Mapping[str, bytes] = {**({PLOT: plot} if plot else {}), CARD: card}
        self.files = [one for one in result.files if one.name not in self.extra]
        self.files += [ResultFile(name, len(content)) for name, content in self.extra.items()]
        self._evaluation = evaluation_digest if evaluation is not None else None
        self._again = partial(
            Edition,
            result,
            repository,
            evaluation=evaluation,
            unevaluated=unevaluated,
            plot=plot,
            evaluation_digest=evaluation_digest,
        )

    def settled(self, sent: Mapping[str, FileDigest]) -> "Edition":
        """The same, once it is known what the large files hold, and with it whose evaluation it is.

        Raises InputError when it is another model's.
        """
        return self._again(sent=sent)

    @property
    def large(self) -> list[ResultFile]:
        """In the order in which they are sent."""
        return [one for one in self.files if one.large]

    @property
    def names(self) -> set[str]:
        """Of all files that will be there."""
        return {*(one.name for one in self.files), MANIFEST}

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(one.size for one in self.files) + self.manifest_size

    @property
    def manifest_size(self) -> int:
        """Of safegraft.json, whose digests are all of one length."""
        return len(self.manifest({one.name: FileDigest(one.size, _NO_DIGEST.sha256) for one in self.files}))

    def small(self) -> dict[str, bytes]:
        """Name -> content, of all but large files and safegraft.json. Raises CheckpointError."""
        return {
            one.name: self.extra[one.name] if one.name in self.extra else self.result.read(one.name)
            for one in self.files
            if not one.large
        }

    def manifest(self, digests: Mapping[str, FileDigest]) -> bytes:
        """safegraft.json, which is true of what is published. digests: of every file."""
        document: dict[str, Any] = json.loads(self.result.manifest({one.name: digests[one.name] for one in self.files}))
        before = document.pop("evaluation", None)
        files = document.pop("files")
        document["evaluation"] = self._evaluation or (_digest(before) if self.evaluated else None)
        document["files"] = files
        return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def digest_of(content: bytes) -> FileDigest:
    """Of a whole file in memory."""
    return FileDigest(len(content), hashlib.sha256(content).hexdigest())


def require_sense(evaluation: EvaluationDocument | None, unevaluated: bool, plot: bytes | None) -> None:
    """Raise UsageError for what contradicts itself."""
    if evaluation is not None and unevaluated:
        raise UsageError("an evaluation is given, and --unevaluated says that there is none: leave one of them away")
    if plot is None:
        return
    if evaluation is None:
        raise UsageError("a plot belongs to an evaluation: give both, or neither")
    if not plot.startswith(_PNG) or len(plot) > MAX_PLOT_BYTES:
        raise UsageError(f"the plot has to be a PNG picture of at most {MAX_PLOT_BYTES >> 20} MiB")


def _card(result: Result, evaluation: EvaluationDocument | None, unevaluated: bool, plot: str | None) -> bytes:
    card = result.card or _plain_card(result)
    if evaluation is not None:
        return with_evaluation(card, evaluation, plot)
    if has_evaluation(card):
        return card
    if not unevaluated:
        raise UsageError(EVALUATE_FIRST)
    if has_warning(card):
        return card
    return card.rstrip() + f"\n\n{UNEVALUATED}\n".encode()


def _plain_card(result: Result) -> bytes:
    """For results without a card: merged adapters."""
    from huggingface_hub import ModelCardData

    settings = parse_object(result.read(ADAPTER_CONFIG), ADAPTER_CONFIG) if _is_adapter(result) else {}
    base = settings.get("base_model_name_or_path")
    known = base if isinstance(base, str) and HUB_NAME.fullmatch(base) else None
    metadata = ModelCardData(
        base_model=known,
        base_model_relation="adapter" if known else None,
        library_name="peft" if settings else None,
        tags=["merge", "safegraft", *(["lora"] if settings else [])],
    )
    title = f"# Merge of {listed([code(name) for name in result.inputs])}"
    what = "An adapter, merged by safegraft from these adapters" if settings else "Merged by safegraft"
    text = f"{what}. `{MANIFEST}` holds the recipe, the inputs and the sha256 of every file."
    use = f" Load it with PEFT onto {code(known)}." if known else ""
    return f"---\n{metadata}\n---\n\n{title}\n\n{text}{use}\n".encode()


def _is_adapter(result: Result) -> bool:
    return any(one.name == ADAPTER_CONFIG for one in result.files)


def _digest(value: Any) -> str | None:
    return value if isinstance(value, str) and _SHA256.fullmatch(value) else None
