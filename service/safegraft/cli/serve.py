"""`safegraft serve`: options in, a running server out."""

from pathlib import Path

import click

from safegraft.cli.options import DEFAULT_SERVER, device_option, quota, token_file_option
from safegraft.cli.remote import read_token
from safegraft.cli.terminal import say

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default=DEFAULT_SERVER,
    show_default=True,
    help="Where to answer. Port 0 takes a free one and says which.",
)
@click.option(
    "--data",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the server's database, results and uploads; made if need be.",
)
@click.option(
    "--models",
    metavar="ROOT[=NAME]",
    multiple=True,
    help="A folder whose models recipes may name, as NAME/path/within; nothing else on this machine can be read. "
    "Without =NAME the folder's own name counts. May be given several times.",
)
@click.option(
    "--hub",
    metavar="PATTERN",
    multiple=True,
    help="Models of the Hugging Face Hub that recipes may name, such as 'org/*', or '*' for all; none by default. The "
    "server reads them with its own login or HF_TOKEN, and with HF_HUB_OFFLINE=1 from its Hub cache: allow only what "
    "every client may read. May be given several times.",
)
@click.option("--hub-anonymous", is_flag=True, help="Read the Hub without this machine's login and HF_TOKEN.")
@click.option(
    "--hub-credential",
    "hub_credentials",
    metavar="NAME=FILE",
    multiple=True,
    help="A file with a token for the Hub, which every client may have used by its NAME, to read what --hub allows and "
    "to publish where --publish-to does; the token itself is never shown. May be given several times.",
)
@click.option(
    "--hub-cache", is_flag=True, help="Download whole models into the Hub cache instead of reading what a merge needs."
)
@click.option(
    "--url",
    "urls",
    metavar="PREFIX",
    multiple=True,
    help="Recipes may name models by URLs below this one: s3://BUCKET/PATH, gs://, az://, https://HOST/PATH; none by "
    "default. May be given several times.",
)
@click.option(
    "--publish-to",
    metavar="PATTERN",
    multiple=True,
    help="Repositories of the Hub that results may be published to, such as 'org/*'; none by default. May be given "
    "several times.",
)
@click.option(
    "--source",
    "sources",
    metavar="NAME",
    multiple=True,
    help="A plugin's checkpoint source that recipes may read models from, as NAME:...; none unless named here.",
)
@click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Merges computed at a time.",
)
@device_option
@click.option(
    "--max-upload-bytes",
    metavar="S",
    type=quota,
    default="100GB",
    show_default=True,
    help="Quota for uploads, all together; 0 takes none.",
)
@token_file_option
@click.option("--insecure", is_flag=True, help="Let other machines in without a token.")
@click.option("--tls-cert", metavar="PEM", type=_FILE, help="Certificate chain, to encrypt; needs --tls-key.")
@click.option("--tls-key", metavar="PEM", type=_FILE, help="Private key of the certificate.")
@click.option(
    "--database",
    metavar="URL",
    envvar="SAFEGRAFT_DATABASE",
    show_envvar=True,
    help="SQLAlchemy URL of the database of merges. Default: SQLite within the data folder.",
)
def serve(
    listen: str,
    data: Path,
    models: tuple[str, ...],
    hub: tuple[str, ...],
    hub_anonymous: bool,
    hub_credentials: tuple[str, ...],
    hub_cache: bool,
    urls: tuple[str, ...],
    publish_to: tuple[str, ...],
    sources: tuple[str, ...],
    workers: int,
    device: str,
    max_upload_bytes: int,
    token_file: Path | None,
    insecure: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    database: str | None,
) -> None:
    """Run a merge server until Ctrl-C or SIGTERM. Unfinished merges continue when it starts again.

    An address that other machines can reach needs a token (--token-file or SAFEGRAFT_TOKEN), which clients then
    have to send, or --insecure.

    \b
    Examples:
      safegraft serve --data /srv/safegraft --models /srv/models
      safegraft serve --data d --models llms=llm --models lvlms=lvlm --workers 2
      safegraft serve --data d --models m --listen 0.0.0.0:50051 --token-file token
      safegraft serve --data d --hub 'org/*' --hub-credential team=hub-token --publish-to 'org/*'
    """
    import logging

    from safegraft.engine.execute import usable
    from safegraft.hub.card import render_card
    from safegraft.rpc.models import ModelRoot
    from safegraft.rpc.options import ServerOptions
    from safegraft.rpc.remote_policy import HubCredential
    from safegraft.rpc.server import serve as run

    options = ServerOptions(
        data=data,
        listen=listen,
        models=tuple(ModelRoot.parse(root) for root in models),
        hub=hub,
        hub_credentials=tuple(HubCredential.parse(one) for one in hub_credentials),
        hub_anonymous=hub_anonymous,
        hub_cache=hub_cache,
        urls=urls,
        publish_to=publish_to,
        sources=sources,
        workers=workers,
        device=usable(device),
        token=read_token(token_file),
        insecure=insecure,
        tls_cert=tls_cert,
        tls_key=tls_key,
        database=database,
        max_upload_bytes=max_upload_bytes,
        card=render_card,
        ready=say,
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    run(options)
