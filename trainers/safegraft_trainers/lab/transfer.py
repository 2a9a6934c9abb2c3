"""Receives merges from a server and checks what arrived, against everything that says what it should be.

Uses `safegraft.Client` and the command line only, so what it finds is what any user would find.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safegraft import Client
from safegraft.errors import DataCorruptedError, SafegraftError
from safegraft.rpc.client import TransferProgress
from safegraft_trainers.lab.pairings import Recipe

MANIFEST = "safegraft.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Merged:
    """A merge as it arrived. size: bytes; first_byte, seconds: since it was asked for.

    sha256: of each file, in hex, as the client computed it from the bytes that came in.
    """

    folder: Path
    digest: str
    sha256: Mapping[str, str]
    size: int
    first_byte: float
    seconds: float


def fetch(client: Client, recipe: Recipe, folder: Path) -> Merged:
    """Have a recipe merged and receive the result while it is computed. Raises what `Client.merge` raises."""
    began = time.perf_counter()
    arrivals: list[float] = []

    def note_arrival(progress: TransferProgress) -> None:
        if progress.bytes_done and not arrivals:
            arrivals.append(time.perf_counter() - began)

    pulled = client.merge(recipe, folder, note_arrival)
    seconds = time.perf_counter() - began
    sha256 = {name: file.sha256 for name, file in pulled.files.items()}
    return Merged(folder, pulled.digest, sha256, pulled.bytes_received, arrivals[0], seconds)


def check_files(merged: Merged) -> int:
    """Compare the folder with the bytes received and with its manifest; returns the number of files.

    Raises DataCorruptedError when a file, a digest or the list of files differs.
    """
    on_disk = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in merged.folder.iterdir()}
    manifest: dict[str, Any] = json.loads((merged.folder / MANIFEST).read_text(encoding="utf-8"))
    listed = {name: file["sha256"] for name, file in manifest["files"].items()}
    listed[MANIFEST] = on_disk[MANIFEST]  # it cannot hold its own
    if not on_disk == listed == merged.sha256:
        raise DataCorruptedError(f"{merged.folder}: the files are not those that the server sent and {MANIFEST} lists")
    if manifest["plan_digest"] != merged.digest:
        raise DataCorruptedError(f"{merged.folder / MANIFEST} is of another plan than the one that was asked for")
    return len(on_disk)


def check_copied(merged: Merged, copied: Collection[str], host: Path) -> None:
    """Hold the tensors that the plan calls copied against the host's. Raises DataCorruptedError."""
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType] (it leaves a path's type open)

    here, there = load_file(merged.folder / WEIGHTS), load_file(host / WEIGHTS)
    changed = sorted(name for name in copied if not here[name].equal(there[name]))
    if changed:
        raise DataCorruptedError(f"{merged.folder}: not the host's, though the plan says so: {', '.join(changed)}")


def check_against_local(merged: Merged, recipe: Recipe, where: Path) -> None:
    """Merge once more by `safegraft merge` in the folder `where`, without a server.

    Raises DataCorruptedError when a byte differs.
    """
    with tempfile.TemporaryDirectory(prefix="safegraft-demo-") as scratch:
        written = Path(scratch, "recipe.yml")
        written.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
        command = [sys.executable, "-m", "safegraft", "merge", str(written), "--out", str(Path(scratch, "merged"))]
        local = subprocess.run([*command, "--json"], cwd=where, capture_output=True, text=True)
        if local.returncode:
            raise SafegraftError(f"`safegraft merge` failed on the recipe of {merged.folder}:\n{local.stderr}")
    files: list[dict[str, str]] = json.loads(local.stdout)["files"]
    sha256 = {file["name"]: file["sha256"] for file in files}
    differing = sorted(
        name for name in sha256.keys() | merged.sha256.keys() if sha256.get(name) != merged.sha256.get(name)
    )
    if differing:
        raise DataCorruptedError(f"{merged.folder}: `safegraft merge` gives other bytes for {', '.join(differing)}")
