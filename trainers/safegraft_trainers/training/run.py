"""Trains, saves, writes the card, publishes: what every trainer does once it is put together.

Knows nothing of data formats and of what the loss is.
"""

# transformers types its trainer in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safegraft.cli.terminal import note, say
from safegraft.errors import OutputError, Problem, UsageError, output_errors
from safegraft_trainers.training.card import render_card
from safegraft_trainers.training.dry_run import describe, named_parameters, parameter_table
from safegraft_trainers.training.parts import is_multimodal
from safegraft_trainers.training.provenance import (
    RECORD,
    Counts,
    Record,
    count,
    given,
    is_hub_name,
    last_losses,
    public_name,
    versions,
)
from safegraft_trainers.training.resume import checkpoints, resume_point

if TYPE_CHECKING:
    from safegraft_trainers.training.arguments import CommonArguments
    from safegraft_trainers.training.base import Choice
    from safegraft_trainers.training.provenance import DataSource

_PICKLED = "training_args.bin"  # runs code when it is read, and holds local paths
_STAGING = ".saving"


@dataclass(frozen=True, slots=True)
class Story:
    """What the trainer alone cannot tell about itself, for the record and the card.

    command: of `safegraft train`. title: for people ("VL adaptation, stage 1"). base_models: as the user named them.
    data: what it learns from. filter_report: what a safe-data filter took out. notes: anything else worth saying.
    """

    command: str
    title: str
    base_models: tuple[str, ...]
    data: "tuple[DataSource, ...]"
    filter_report: str = ""
    notes: tuple[str, ...] = field(default=())


def check_output(training: Any, script: "CommonArguments") -> None:
    """Refuse, before anything is loaded, an output folder with a model or with checkpoints that nobody asked to resume.

    With dry_run it makes `training` write nothing. Raises OutputError, UsageError.
    """
    if script.dry_run:
        # A Trainer makes its output folder, its repository and its logs as soon as it is built.
        training.output_dir, training.push_to_hub, training.report_to = tempfile.gettempdir(), False, []
        return
    if resume_point(training) is not None:
        return
    out = Path(training.output_dir)
    if any((out / file).exists() for file in (RECORD, "config.json", "adapter_config.json")):
        raise OutputError(f"{out}: holds a model already; choose another --output_dir, or remove it")
    if checkpoints(out):
        message = "holds checkpoints of a run that was interrupted; add --resume_from_checkpoint true to go on with it"
        raise OutputError(f"{out}: {message}, or choose another --output_dir")


def run(trainer: Any, script: "CommonArguments", *, choice: "Choice", story: Story) -> Path:
    """Train (or, with script.dry_run, only show), save, write the card and publish; returns trainer.args.output_dir.

    trainer: a TRL trainer extended by training.trainer.Extended.
    Call `check_output(training, script)` before models are loaded. Raises OutputError, UsageError, CheckpointError.
    """
    out = Path(trainer.args.output_dir)
    main_process = trainer.is_world_process_zero()
    if script.dry_run:
        if main_process:
            say(describe(trainer, choice))
        return out
    _check_adapter(trainer, script, story)
    if script.projector_learning_rate is not None:
        trainer.use_projector_rate(choice.parts, script.projector_learning_rate)
    counts = count((part, one.numel(), one.requires_grad) for part, _, one in named_parameters(trainer.model, choice))
    _train(trainer)
    record = _with_outcome(_record(trainer.args, script, story, counts, trainer.model), trainer, script, choice)
    with output_errors(out):
        _save(trainer, record, out)
    if trainer.args.push_to_hub and main_process:
        _publish(trainer.args, trainer.hub_model_id, out)
    trainer.accelerator.wait_for_everyone()
    return out


def _check_adapter(trainer: Any, script: "CommonArguments", story: Story) -> None:
    adapter = _is_adapter(trainer.model)
    if script.merge_adapter and not adapter:
        raise UsageError("--merge_adapter: nothing learns through an adapter; add --use_peft")
    if script.merge_adapter and (getattr(trainer.model, "is_quantized", False) or trainer.is_deepspeed_enabled):
        message = "cannot be merged into weights that are quantized or sharded: train the adapter, then merge it"
        raise UsageError(Problem("--merge_adapter", f"{message} by `safegraft merge` with MODEL+ADAPTER in the recipe"))
    if trainer.args.push_to_hub and adapter and not script.merge_adapter:
        local = [base for base in story.base_models if not is_hub_name(base)]
        if local:
            message = f"an adapter of {public_name(local[0])}, which is no model on the Hub, helps nobody there"
            raise UsageError(Problem("--push_to_hub", f"{message}; add --merge_adapter"))


def _is_adapter(model: Any) -> bool:
    import peft

    return isinstance(model, peft.PeftModel)


def _train(trainer: Any) -> None:
    resume = resume_point(trainer.args)
    if resume is not None and trainer.is_world_process_zero():
        note(f"resuming from {resume.name}")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the progress bar writes its logs to stdout
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    except KeyboardInterrupt:
        if checkpoints(Path(trainer.args.output_dir)):
            note("stopped; add --resume_from_checkpoint true to the same command to go on from the last checkpoint")
        raise


def save_untrained(
    model: Any, front: Any, training: Any, script: "CommonArguments", *, choice: "Choice", story: Story
) -> Path:
    """Save a model that was made and not trained, with record and card; returns training.output_dir.

    training: TRL's arguments. Raises OutputError.
    """
    out = Path(training.output_dir)
    if script.dry_run:
        say(parameter_table(model, choice))
    elif training.process_index == 0:
        counts = count((part, one.numel(), False) for part, _, one in named_parameters(model, choice))
        record = _record(training, script, story, counts, model)

        def write(folder: Path) -> None:
            model.save_pretrained(folder)
            front.save_pretrained(folder)

        with output_errors(out):
            _finish(out, write, record, _name(training, out))
    return out


def _record(training: Any, script: "CommonArguments", story: Story, counts: tuple[Counts, ...], model: Any) -> Record:
    return Record(
        command=story.command,
        title=story.title,
        base_models=tuple(public_name(base) for base in story.base_models),
        data=story.data,
        parameters=counts,
        arguments=given(script, training),
        versions=versions(),
        multimodal=is_multimodal(model.config),
        filter_report=story.filter_report,
        notes=story.notes,
    )


def _with_outcome(record: Record, trainer: Any, script: "CommonArguments", choice: "Choice") -> Record:
    state = trainer.state
    return replace(
        record,
        steps=state.global_step,
        epochs=state.epoch or 0.0,
        losses=last_losses(state.log_history),
        adapter=None if choice.peft_config is None else _adapter_settings(choice.peft_config.to_dict()),
        merged=script.merge_adapter,
        notes=(*record.notes, *choice.notes),
    )


def _adapter_settings(settings: dict[str, Any]) -> dict[str, Any]:
    shown = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_modules", "modules_to_save")
    return {key: settings[key] for key in shown if settings.get(key) not in (None, False)}


def _save(trainer: Any, record: Record, out: Path) -> None:
    """The trained model into its folder. Every process takes part, as each may hold a share of the weights."""
    model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload() if record.merged else None
    writes = trainer.is_world_process_zero()

    def write(folder: Path) -> None:
        if model is None:
            trainer.save_model(str(folder), _internal_call=True)
            (folder / _PICKLED).unlink(missing_ok=True)
        elif writes:
            model.save_pretrained(folder)
            trainer.processing_class.save_pretrained(folder)

    if writes:
        _finish(out, write, record, _name(trainer.args, out))
    else:
        write(out / _STAGING)
    trainer.accelerator.wait_for_everyone()


def _finish(out: Path, write: Callable[[Path], None], record: Record, name: str) -> None:
    """Write a model beside its place and move it there; the record, which says that all is there, comes last."""
    staging = out / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    write(staging)
    if not any(staging.glob("*.safetensors")):
        message = "the weights are sharded and were not gathered: ask FSDP for FULL_STATE_DICT, or DeepSpeed for"
        raise OutputError(f"{out}: {message} stage3_gather_16bit_weights_on_model_save; the last checkpoint has them")
    (staging / "README.md").write_text(render_card(record, name), encoding="utf-8")
    for path in sorted(staging.iterdir()):
        os.replace(path, out / path.name)
    draft = staging / RECORD
    draft.write_text(record.to_json(), encoding="utf-8")
    os.replace(draft, out / RECORD)
    staging.rmdir()


def _name(training: Any, out: Path) -> str:
    return public_name(training.hub_model_id or str(out.resolve())).rpartition("/")[2]


def _publish(training: Any, repository: str, out: Path) -> None:
    """One commit of the finished folder to the repository that the Trainer made (private unless told otherwise)."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi(token=training.hub_token).upload_folder(
            repo_id=repository,
            folder_path=out,
            ignore_patterns=["checkpoint-*", "runs/*", ".*", _PICKLED],
            commit_message="Trained by safegraft",
            revision=training.hub_revision,
        )
    except (HfHubHTTPError, OSError) as error:
        message = f"the model is complete in {out}, but could not be published: {error}"
        raise OutputError(f"{message}; `hf upload {repository} {out}` tries again") from error
    note(f"published as {repository}")
