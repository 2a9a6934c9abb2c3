"""Options and argument types that commands share, so that they mean the same everywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from safegraft.cli.remote import TOKEN
from safegraft.cli.sizes import parse_size

SERVER = "SAFEGRAFT_SERVER"
Callback = TypeVar("Callback", bound=Callable[..., Any])

DEFAULT_SERVER = "127.0.0.1:50051"


def size(text: str) -> int:
    """An option's type: 5GB, 500MB, 1GiB or plain bytes."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def quota(text: str) -> int:
    """An option's type: a size, or 0."""
    return 0 if text.strip() == "0" else size(text)


def bare_id(text: str) -> str:
    """A merge's id, also when given as the API's "merges/ID"."""
    return text.removeprefix("merges/")


recipe_argument = click.argument("recipe", metavar="RECIPE.yml", type=click.Path(path_type=Path))

id_argument = click.argument("id", metavar="ID", type=bare_id)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for a program to read.")

device_option = click.option(
    "--device",
    metavar="DEVICE",
    default="cpu",
    show_default=True,
    help="Where to compute: cpu, cuda or cuda:N. A GPU may round a result's last bit differently.",
)
hub_cache_option = click.option(
    "--hub-cache",
    is_flag=True,
    help="Download models of the Hub whole, into the Hugging Face cache, instead of reading what is needed of them. "
    "SAFEGRAFT_HUB_CACHE=1 in the environment says so for all commands.",
)
verify_inputs_option = click.option(
    "--verify-inputs",
    is_flag=True,
    help="Read models of the Hub to the ends of their weight files, also what is not needed, to compare their sha256.",
)
hub_credential_option = click.option(
    "--hub-credential",
    metavar="NAME",
    help="With --server: the server's credential with which models of the Hub are read.",
)
max_shard_size_option = click.option(
    "--max-shard-size",
    metavar="S",
    type=size,
    default="5GB",
    show_default=True,
    help="No weights file is larger, unless a single tensor is. Decimal units: 500MB, 5GB; or bytes.",
)

token_file_option = click.option(
    "--token-file",
    metavar="F",
    type=click.Path(path_type=Path),
    help=f"File that holds the server's token. Default: the environment variable {TOKEN}.",
)

server_option = click.option(
    "--server",
    metavar="HOST:PORT",
    envvar=SERVER,
    default=DEFAULT_SERVER,
    show_default=True,
    show_envvar=True,
    help="The server to ask.",
)

# Where a command works locally by default, the environment must not send it to a server unasked.
optional_server_option = click.option("--server", metavar="HOST:PORT", help="Let this server do it.")

ca_option = click.option(
    "--ca",
    metavar="PEM",
    envvar="SAFEGRAFT_CA",
    show_envvar=True,
    type=click.Path(path_type=Path),
    help="Encrypt, and trust servers with a certificate of this authority.",
)


def remote_options(command: Callback) -> Callback:
    """Everything that a command needs to find its server: --server, --token-file, --ca."""
    return server_option(token_file_option(ca_option(command)))


def optional_remote_options(command: Callback) -> Callback:
    """The same for a command that works here unless --server says otherwise."""
    return optional_server_option(token_file_option(ca_option(command)))
