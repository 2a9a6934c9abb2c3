"""Whether a result's bytes are what its recipe gives: the plan's files computed again, hashed, and not kept."""

from dataclasses import replace

from safegraft.engine.execute import MergedCheckpoint, Never, never
from safegraft.engine.task import Plan, PlannedFile
from safegraft.hub.file_kinds import is_loaded
from safegraft.hub.hashing import Meter, Progress, silent
from safegraft.hub.manifest import Manifest
from safegraft.hub.verification import Recomputation, Status, Verification


def recompute(
    verification: Verification,
    plan: Plan,
    *,
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress = silent,
    cancelled: Never = never,
) -> Verification:
    """Merge again, as a stream that is hashed and not kept, and compare with what the manifest lists.

    plan: of the manifest's recipe, with its `max_shard_size`. Whoever made it closes it.
    Raises what merging raises.
    """
    manifest = verification.manifest
    wanted = [file for file in plan.files if file.kind not in ("card", "manifest")]
    known = [file for file in wanted if file.name in manifest.files]
    meter = Meter(sum(file.size for file in known), progress, cancelled)
    with MergedCheckpoint(plan, threads=threads, device=device) as merged:
        found: list[tuple[str, Status]] = [(file.name, _again(file, merged, manifest, meter)) for file in wanted]
    for checkpoint in plan.checkpoints.values():
        checkpoint.verify_unchanged()
    names = {file.name for file in wanted}
    for name in manifest.files:
        if name not in names and is_loaded(name):  # the card is no weight, and the plot is an evaluation's
            found.append((name, "extra"))
    again = Recomputation(
        plan_digest=plan.digest,
        same_plan=plan.digest == manifest.plan_digest,
        versions=_changed_versions(manifest, plan),
        inputs=_changed_inputs(manifest, plan),
        files=tuple(found),
        guessed_layout=manifest.max_shard_size is None,
    )
    return replace(verification, recomputed=again)


def _again(file: PlannedFile, merged: MergedCheckpoint, manifest: Manifest, meter: Meter) -> Status:
    expected = manifest.files.get(file.name)
    if expected is None:
        return "missing"
    if file.size != expected.size:
        meter.pass_over(file.size)
        return "differs"
    return "same" if meter.sha256(file.name, merged.files[file.name].stream()) == expected.sha256 else "differs"


def _changed_versions(manifest: Manifest, plan: Plan) -> dict[str, tuple[str | None, str | None]]:
    names = sorted({*manifest.versions, *plan.versions})
    pairs = {name: (manifest.versions.get(name), plan.versions.get(name)) for name in names}
    return {name: (then, now) for name, (then, now) in pairs.items() if then != now}


def _changed_inputs(manifest: Manifest, plan: Plan) -> tuple[str, ...]:
    """By public name: those whose files are not what they were, as far as digests of one kind tell."""
    changed: list[str] = []
    for model, checkpoint in plan.checkpoints.items():
        scheme, digest = manifest.inputs.get(plan.names[model], ("", ""))
        if (scheme, digest) != (checkpoint.identity.scheme, checkpoint.identity.digest):
            changed.append(plan.names[model])
    return tuple(changed)
