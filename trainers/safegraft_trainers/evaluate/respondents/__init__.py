"""Who answers.

batching.py             what may be asked together
transformers_model.py   a model here
endpoint.py             a model behind an OpenAI-compatible endpoint
chat.py                 such an endpoint: many conversations at a time, patiently
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from safegraft_trainers.evaluate.example import Example
from safegraft_trainers.evaluate.respondents.endpoint import EndpointRespondent
from safegraft_trainers.evaluate.respondents.transformers_model import TransformersRespondent

__all__ = ["EndpointRespondent", "Respondent", "TransformersRespondent"]

Setting = str | int | float | bool | None


class Respondent(Protocol):
    """A model that can be asked.

    digest: equal for equal weights. settings: all else that its answers depend on. batch_size: how many examples it
    takes well at a time. sees_images, tells_likelihoods: what it can be asked.
    """

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def settings(self) -> Mapping[str, Setting]: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def sees_images(self) -> bool: ...
    @property
    def tells_likelihoods(self) -> bool: ...

    def answer(self, examples: Sequence[Example]) -> list[str]:
        """One answer an example, in their order, without blanks around it."""
        ...

    def likelihoods(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        """The natural log of the probability of each (context, continuation)'s continuation."""
        ...
