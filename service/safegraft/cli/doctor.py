"""`safegraft doctor`: does this machine have what safegraft needs? Nothing is changed."""

import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

import click

from safegraft import __version__
from safegraft.cli.options import DEFAULT_SERVER, json_option
from safegraft.cli.sizes import format_size
from safegraft.cli.terminal import say, say_json

ENOUGH_MEMORY = 2 * 10**9
ENOUGH_DISK = 20 * 10**9
PACKAGES = {  # module -> distribution
    "torch": "torch",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "numpy": "numpy",
    "grpc": "grpcio",
    "pydantic": "pydantic",
    "sqlalchemy": "sqlalchemy",
    "mergekit": "mergekit",
}
FAILED = 1


class Finding(NamedTuple):
    """`warning`: works, but look at it. `failed`: something cannot work."""

    level: Literal["ok", "warning", "failed"]
    subject: str
    message: str


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check Python, packages, CPU, memory, disk, plugins and the server's port.

    The exit code is 1 when a check failed, and 0 with warnings at most.

    \b
    Examples:
      safegraft doctor
      safegraft doctor --json
    """
    findings: list[Finding] = []
    for check in CHECKS:
        for finding in check():
            findings.append(finding)
            if not as_json:
                say(f"{finding.level:<8} {finding.subject:<12} {finding.message}")
    failed = any(finding.level == "failed" for finding in findings)
    if as_json:
        say_json({"healthy": not failed, "findings": [finding._asdict() for finding in findings]})
    if failed:
        ctx.exit(FAILED)


def check_python() -> Iterator[Finding]:
    """safegraft's and Python's version, and the platform."""
    running = f"safegraft {__version__} on Python {platform.python_version()}, {platform.platform()}"
    yield Finding("ok" if sys.version_info >= (3, 11) else "failed", "python", running)


def check_packages() -> Iterator[Finding]:
    """A package that is installed need not be importable: a broken wheel shows only here."""
    for name, distribution in PACKAGES.items():
        try:
            import_module(name)
        except Exception as error:  # whatever a broken package raises is the finding
            yield Finding("failed", name, f"cannot be imported: {type(error).__name__}: {error}")
        else:
            yield Finding("ok", name, version(distribution))


def check_cpu() -> Iterator[Finding]:
    """Cores this process may use, and the vector instructions that torch found."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        import torch
    except Exception:  # check_packages has said why
        yield Finding("warning", "cpu", f"{cores} cores; vector instructions unknown without torch")
        return
    capability = torch.backends.cpu.get_cpu_capability()
    level = "warning" if capability == "DEFAULT" else "ok"
    slow = ": no vector instructions, merging will be slow" if level == "warning" else ""
    yield Finding(level, "cpu", f"{cores} cores, {capability}{slow}")


def check_machine_code() -> Iterator[Finding]:
    """Without numba, methods run in torch: the same bits, several times slower."""
    try:
        numba = f"numba {version('numba')}"
    except PackageNotFoundError:
        text = "numba is not installed: pip install 'safegraft[fast]' makes many methods several times faster"
        yield Finding("warning", "machine code", text)
    else:
        off = "" if os.environ.get("SAFEGRAFT_COMPILED", "1") != "0" else ", turned off by SAFEGRAFT_COMPILED=0"
        yield Finding("ok", "machine code", numba + off)


def check_memory() -> Iterator[Finding]:
    """A merge needs a few hundred MB whatever the models' size; other processes need some too."""
    if sys.platform != "linux":
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        yield Finding("ok", "memory", f"{format_size(total)} in all")
        return
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    level = "ok" if available >= ENOUGH_MEMORY else "warning"
    yield Finding(
        level, "memory", f"{format_size(available)} available; a merge needs less than {format_size(ENOUGH_MEMORY)}"
    )


def check_disk() -> Iterator[Finding]:
    """Room in the current folder, where results usually go."""
    free = shutil.disk_usage(Path.cwd()).free
    level = "ok" if free >= ENOUGH_DISK else "warning"
    few = "" if level == "ok" else "; a merged 7B model takes 14 GB"
    yield Finding(level, "disk", f"{format_size(free)} free in the current folder{few}")


def check_plugins() -> Iterator[Finding]:
    """Every plugin, broken ones as failures."""
    from safegraft.methods import Registry

    for plugin in Registry.discover().plugins:
        if plugin.error:
            yield Finding("failed", "plugin", f"{plugin.name} ({plugin.distribution} {plugin.version}): {plugin.error}")
        else:
            yield Finding("ok", "plugin", f"{plugin.name}: {', '.join(plugin.methods)}")


def check_port() -> Iterator[Finding]:
    """Whether `safegraft serve` can have its default port."""
    host, port = DEFAULT_SERVER.rsplit(":", 1)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            yield Finding(
                "warning",
                "port",
                f"{DEFAULT_SERVER}: {error.strerror}; `safegraft health` tells if it is a server of ours",
            )
        else:
            yield Finding("ok", "port", f"{DEFAULT_SERVER} is free")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_packages,
    check_cpu,
    check_machine_code,
    check_memory,
    check_disk,
    check_plugins,
    check_port,
)
