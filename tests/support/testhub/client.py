"""Points this process's huggingface_hub at a test Hub, for one test."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from testhub.hub import Hub

if TYPE_CHECKING:
    import pytest


def point_at(
    hub: Hub, monkeypatch: "pytest.MonkeyPatch", cache: Path, *, token: str | Literal[False] | None = None
) -> None:
    """Make `hub` the Hub for this test, with this folder as the cache, a token (None: the one that may write, False:
    no token) and without Xet. Connections and sessions of an earlier test do not live on.
    """
    import huggingface_hub
    from huggingface_hub import constants, hf_api

    huggingface_hub.close_session()
    huggingface_hub.HfFileSystem.clear_instance_cache()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_ENDPOINT", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)  # what `huggingface_hub.create_repo` and the like call
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    if token is not False:
        monkeypatch.setenv("HF_TOKEN", token or hub.token)
    if "transformers.utils.hub" in sys.modules:
        monkeypatch.setattr(sys.modules["transformers.utils.hub"], "_hf_api", None)  # it keeps an endpoint, too
