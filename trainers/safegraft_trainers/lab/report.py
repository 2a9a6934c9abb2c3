"""The folder that the demo leaves: its numbers, tables, plots and recipes, and report.md, which leads to them.

Knows evaluations and files; trains, merges and prints nothing.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safegraft_trainers.evaluate.plots import four_axes, trade_off
from safegraft_trainers.evaluate.results import Evaluation, compare, write_evaluations, write_whole
from safegraft_trainers.lab import outcome
from safegraft_trainers.lab.pairings import PAIRINGS
from safegraft_trainers.lab.stages import ADAPTED, CHECKPOINTS, LOG, REPLAY

REPORT, RESULTS, TABLE, RECIPES = "report.md", "results.json", "table.md", "recipes"
TRADE_OFF, FOUR_AXES = "trade-off.png", "four-axes.png"

_REPORT = """\
# What the demo found

## What training did

```text
{before}
```

Percent with the 95 % interval; in brackets: the harmful truth was told, word for word.

{loss}

## What merging brought back, and its price

```text
{after}
```

Points compared with `{adapted}`, prompt by prompt; * where the 95 % interval leaves out 0:

```text
{changes}
```

```text
{verdict}
```

{limits}

![attacks answered against benign prompts right]({trade_off})
![the four axes]({four_axes})

## What is here

| | |
|---|---|
| `{results}` | every answer, verdict and score; `safegraft evaluate` writes the like |
| [`{table}`]({table}) | all models side by side, with each set of questions |
| `{recipes}/` | of every merge; from this folder: `safegraft merge {recipes}/{example}.json --out again` |
| `merged/` | the merges, as received over gRPC |
| `{checkpoints}/` | the trained models, each with the card and the record of its training |
| [`{log}`]({log}) | the commands that trained them, and what the trainers said |
| `recipe.yml` | to fill in, for two models of your own |
"""


def write(
    out: Path,
    models: Mapping[str, Evaluation],
    merged: Mapping[str, Evaluation],
    verdict: Sequence[str],
    limits: Sequence[str],
) -> None:
    """Raises OutputError."""
    every = list({**models, **merged}.values())
    write_evaluations(every, out / RESULTS)
    four_axes(every, out / FOUR_AXES)
    trade_off(every, out / TRADE_OFF)
    # The first is what the others' differences are taken from.
    ordered = [models[ADAPTED], *(one for name, one in models.items() if name != ADAPTED), *merged.values()]
    write_whole(out / TABLE, compare(ordered, markdown=True) + "\n")
    for pairing in PAIRINGS:
        for strength in pairing.strengths:
            recipe = json.dumps(pairing.recipe(strength), indent=1)
            write_whole(out / RECIPES / f"{pairing.file(strength)}.json", recipe + "\n")
    write_whole(out / REPORT, _report(models, merged, verdict, limits))


def _report(
    models: Mapping[str, Evaluation], merged: Mapping[str, Evaluation], verdict: Sequence[str], limits: Sequence[str]
) -> str:
    first = PAIRINGS[0]
    return _REPORT.format(
        before=outcome.table(models),
        loss="\n".join(outcome.loss(models)),
        after=outcome.table({ADAPTED: models[ADAPTED], REPLAY: models[REPLAY], **merged}),
        adapted=ADAPTED,
        changes=outcome.changes(models[ADAPTED], merged),
        verdict="\n".join(verdict),
        limits="\n".join(limits),
        trade_off=TRADE_OFF,
        four_axes=FOUR_AXES,
        results=RESULTS,
        table=TABLE,
        recipes=RECIPES,
        example=first.file(first.default),
        checkpoints=CHECKPOINTS,
        log=LOG,
    )
