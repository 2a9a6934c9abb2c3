"""`safegraft lab`: the paper in miniature."""

from pathlib import Path

import click


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("lab-output"),
    show_default=True,
    help="Folder for checkpoints, answers and results; a rerun goes on there.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="How many worlds: 0, 1, ...")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Seeds at a time, a core each.")
@click.option(
    "--page",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A Markdown page whose marked tables are filled in; plots and results go to a folder beside it.",
)
def lab(out: Path, seeds: int, jobs: int, page: Path | None) -> None:
    """Show the paper's claims on models small enough to train on a CPU.

    Of each seed: a made-up world, a language model that knows it, its alignment, its adaptation to pictures, safety
    tuning in four ways, a sweep over merges, and held-out questions to all of them. About 15 minutes a seed and core.
    """
    from safegraft.cli.terminal import note, say
    from safegraft_trainers.lab.run import fill_page, run_lab, write_results
    from safegraft_trainers.lab.tables import tables

    found = run_lab(out, range(seeds), jobs)
    folder = out if page is None else page.with_suffix("")
    write_results(found, folder)
    if page is not None:
        fill_page(found, page)
    for name, table in tables(found).items():
        say(f"{name}\n\n{table}\n")
    note(f"written: {folder}")
