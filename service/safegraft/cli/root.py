"""The command group. A command's module is imported when it is called, not to list it.

Other packages bring commands of their own through the entry-point group `safegraft.commands`.
"""

import functools
import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import NamedTuple

import click

from safegraft import __version__
from safegraft.errors import PluginError

USAGE_WRONG = 2


class Entry(NamedTuple):
    """Where a command is, and its line in the list of commands."""

    module: str
    attribute: str
    summary: str


COMMANDS = {
    "merge": Entry("safegraft.cli.merge", "merge", "Merge models into a folder, here or on a server."),
    "plan": Entry("safegraft.cli.plan", "plan", "Show what a merge would do, without reading weights."),
    "extract-lora": Entry("safegraft.cli.extract_lora", "extract_lora", "Make an adapter of two models' difference."),
    "methods": Entry("safegraft.cli.catalog", "methods", "List the merge methods and their parameters."),
    "plugins": Entry("safegraft.cli.catalog", "plugins", "List the plugins, broken ones with the reason."),
    "serve": Entry("safegraft.cli.serve", "serve", "Run a merge server."),
    "ls": Entry("safegraft.cli.jobs", "ls", "List a server's merges."),
    "watch": Entry("safegraft.cli.jobs", "watch", "Follow a merge on a server until it ends."),
    "pull": Entry("safegraft.cli.pull", "pull", "Download a merge, finished or still running."),
    "push": Entry("safegraft.cli.push", "push", "Publish a merge on the Hugging Face Hub."),
    "verify": Entry("safegraft.cli.verify", "verify", "Check a merge's bytes, here or on the Hub, against its recipe."),
    "cancel": Entry("safegraft.cli.jobs", "cancel", "Stop a merge on a server."),
    "rm": Entry("safegraft.cli.jobs", "rm", "Delete a merge and its files from a server."),
    "health": Entry("safegraft.cli.health", "health", "Ask whether a server is serving."),
    "doctor": Entry("safegraft.cli.doctor", "doctor", "Check this machine for what safegraft needs."),
}


ENTRY_POINTS = "safegraft.commands"


@functools.cache
def _brought() -> dict[str, EntryPoint]:
    """The commands of other packages. One of ours cannot be replaced."""
    found = sorted(entry_points(group=ENTRY_POINTS), key=lambda point: (point.name, point.value))
    return {point.name: point for point in found if point.name not in COMMANDS}


class LazyGroup(click.Group):
    """A group whose commands are named in COMMANDS, or brought by other packages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *_brought()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if entry := COMMANDS.get(cmd_name):
            command = vars(importlib.import_module(entry.module))[entry.attribute]
            assert isinstance(command, click.Command)
            return command
        point = _brought().get(cmd_name)
        return None if point is None else _load(point)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])
        if brought := _brought():
            with formatter.section("Companions"):
                formatter.write_dl([(name, _summary(point)) for name, point in brought.items()])


def _load(point: EntryPoint) -> click.Command:
    try:
        command = point.load()
    except Exception as error:  # a stranger's package
        raise PluginError(f"the command {point.name} ({point.value}) cannot be loaded: {error}") from error
    if not isinstance(command, click.Command):
        raise PluginError(f"the command {point.name} ({point.value}) is no click command")
    return command


def _summary(point: EntryPoint) -> str:
    try:
        return _load(point).get_short_help_str(limit=100)
    except PluginError as error:
        return f"broken: {error}"


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"safegraft {__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show the version."
)
@click.pass_context
def root(ctx: click.Context) -> None:
    """Merge an aligned language model into the vision-language model adapted from it.

    \b
    safegraft plan recipe.yml                 what would happen, tensor by tensor
    safegraft merge recipe.yml --out merged   do it
    safegraft COMMAND --help                  options and examples

    Exit codes: 0 done, 2 recipe or usage wrong, 3 an input is unusable, 4 server or transport, 1 anything else.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(USAGE_WRONG)
