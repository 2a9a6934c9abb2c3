"""What every trainer can be told, and how a command line and a YAML file become it.

TrlParser reads both; here are our defaults, our own configurations by name, and errors in words.
Knows no trainer and no model.
"""

# transformers and TRL type their dataclasses and parsers in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import argparse
import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import yaml

from safegraft.errors import Problem, UsageError

PROJECTOR, LANGUAGE, BOTH, EVERYTHING = "projector", "language", "language+projector", "everything"
PARTS = (PROJECTOR, LANGUAGE, BOTH, EVERYTHING)

Defaults = Mapping[str, Any] | Callable[[Any], Mapping[str, Any]]


@dataclass
class CommonArguments:
    """What all trainers share, beside TRL's training and model arguments (where `seed`, `use_peft`, ... are)."""

    train_parts: str = field(
        default=BOTH,
        metadata={
            "help": "Which part learns: the projector, the language model, both, or everything (the vision tower too). "
            "With --use_peft the language model learns through LoRA and the projector as a whole.",
            "choices": list(PARTS),
        },
    )
    projector_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of the projector. Default: --learning_rate. LLaVA's LoRA recipe has 2e-5."},
    )
    language_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Modules of the language model, for a family that is not known: model.decoder lm_head"},
    )
    projector_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules between vision and language, for a family that is not known."}
    )
    tower_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules of vision (and other) encoders, for a family that is not known."}
    )
    merge_adapter: bool = field(
        default=False,
        metadata={"help": "With --use_peft: write the model with the adapter merged in, not the adapter."},
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Show what would learn, what it would cost and the first batch; train and write nothing."},
    )


def parse(
    kinds: Sequence[type[Any]], argv: Sequence[str], *, command: str, defaults: Defaults | None = None
) -> tuple[Any, ...]:
    """One object of each class in `kinds` from the command line `argv`, which may name a file by --config.

    command: of `safegraft train`, for --help. defaults: ours over TRL's by argument, or a function that makes them of
    what was asked for. A --config that is no file may be the name of a configuration that comes with the package.
    The command line overrides the file, the file the defaults. Raises UsageError.
    """
    parser: Any = _parser(kinds, command)
    known = sorted({action.dest for action in parser._actions})
    parser.set_defaults_with_config(**_our_defaults(known))
    arguments, path = _without_config(argv)
    document = {} if path is None else _read(path, parser, known)
    if callable(defaults):
        parser.set_defaults_with_config(**document)
        defaults = defaults(parser.parse_known_args(arguments)[0])
    parser.set_defaults_with_config(**(defaults or {}))
    config = [] if path is None else ["--config", str(path)]
    try:
        with warnings.catch_warnings():
            # TRL's default for gradient_checkpointing is under the name that transformers is about to drop.
            warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
            return parser.parse_args_and_config([*config, *arguments])
    except (ValueError, TypeError) as error:  # the dataclasses' own checks
        raise UsageError(str(error)) from error


def _parser(kinds: Sequence[type[Any]], command: str) -> Any:
    """TrlParser, but what is wrong is an error of ours, not the end of the program."""
    from trl.scripts.utils import TrlParser

    class Parser(TrlParser):
        def error(self, message: str) -> NoReturn:
            raise UsageError(f"{message}; `{self.prog} --help` lists the arguments")

    every: Any = list(kinds)
    names = ", ".join(configurations())
    epilog = f"--config FILE reads any of these from YAML; the command line overrides it. Files by name: {names}."
    return Parser(every, prog=f"safegraft train {command}", allow_abbrev=False, epilog=epilog)


def configurations() -> list[str]:
    """The names of the configurations that come with the package."""
    folder = resources.files("safegraft_trainers") / "configs"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def find_configuration(name: str) -> Path:
    """A file, or one of ours by name. Raises UsageError."""
    if Path(name).is_file():
        return Path(name)
    if name.removesuffix(".yaml") in configurations():
        return Path(str(resources.files("safegraft_trainers") / "configs" / f"{name.removesuffix('.yaml')}.yaml"))
    raise UsageError(f"--config {name}: no such file; configurations by name are " + ", ".join(configurations()))


def _our_defaults(known: Sequence[str]) -> dict[str, Any]:
    """What differs from TRL for every trainer that has the argument.

    max_length: TRL cuts at 1024 tokens, which may cut image tokens off. hub: private, and nothing before the end.
    bf16: TRL wants it unless fp16 is asked for, and fails where the machine cannot.
    """
    import torch

    ours: dict[str, Any] = {"max_length": None, "hub_private_repo": True, "hub_strategy": "end"}
    if not (torch.cuda.is_available() and torch.cuda.is_bf16_supported()):
        ours["bf16"] = False
    return {key: value for key, value in ours.items() if key in known}


def _without_config(argv: Sequence[str]) -> tuple[list[str], Path | None]:
    """The arguments but --config FILE (or --config=FILE), and that file."""
    only = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    only.add_argument("--config")
    try:
        found, others = only.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError("--config: name a YAML file, or one of " + ", ".join(configurations())) from error
    return others, None if found.config is None else find_configuration(found.config)


def _read(path: Path, parser: Any, known: Sequence[str]) -> dict[str, Any]:
    """A configuration; all that is wrong with it is reported at once. Raises UsageError."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(Problem(str(path), f"cannot be read: {error}")) from error
    if not isinstance(document, dict):
        raise UsageError(Problem(str(path), "holds no mapping of arguments to values"))
    values = {str(key): value for key, value in document.items() if key != "env"}  # env: TrlParser's, for the process
    actions = {action.dest: action for action in parser._actions if action.dest != "help"}
    problems = [problem for key, value in values.items() if (problem := _fault(key, value, actions.get(key), known))]
    if problems:
        raise UsageError([Problem(f"{path}: {key}", message) for key, message in problems])
    return values


def _fault(key: str, value: Any, action: Any, known: Sequence[str]) -> tuple[str, str] | None:
    """What argparse does not check of a default: that there is such an argument, and that the value is allowed."""
    if action is None:
        close = difflib.get_close_matches(key, known, 1)
        return key, "unknown argument" + (f"; did you mean {close[0]}?" if close else "")
    if action.choices and value not in action.choices:
        return key, f"is {value!r}; one of {', '.join(map(str, action.choices))} is needed"
    if action.nargs == "+" and not isinstance(value, list):
        return key, f"is {value!r}; a list is needed"
    if action.type is _boolean() and not isinstance(value, bool | None):
        return key, f"is {value!r}; true or false is needed"
    return None


def _boolean() -> Any:
    from trl.scripts._hf_argparser import string_to_bool  # pyright: ignore[reportPrivateUsage] (the type it gives flags)

    return string_to_bool
