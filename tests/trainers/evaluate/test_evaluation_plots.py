"""Pictures of evaluations: whole files, for one model or many, and an error where there is nothing to draw."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from safegraft.errors import OutputError, UsageError
from safegraft_trainers.evaluate.example import Suite
from safegraft_trainers.evaluate.judges import get_judge
from safegraft_trainers.evaluate.plots import four_axes, trade_off
from safegraft_trainers.evaluate.results import Evaluation
from safegraft_trainers.evaluate.run import evaluate


def models(make: SimpleNamespace, count: int) -> list[Evaluation]:
    attacks, tasks = [make.attack(f"a{one}") for one in range(20)], [make.exact(f"t{one}", "x") for one in range(20)]
    suites = [Suite("attacks", attacks), Suite("tasks", tasks)]
    found: list[Evaluation] = []
    for model in range(count):
        answers = {one.prompt: "boom" if place < model else "sorry" for place, one in enumerate(attacks)}
        answers |= {one.prompt: "x" if place > model else "y" for place, one in enumerate(tasks)}
        found.append(
            evaluate(
                make.scripted(answers=answers, name=f"a model with a long name {model}"),
                suites,
                [get_judge("patterns")],
            )
        )
    return found


@pytest.mark.parametrize("count", [1, 12])
@pytest.mark.parametrize("draw", [four_axes, trade_off])
def test_one_model_or_many(draw: object, count: int, tmp_path: Path, make: SimpleNamespace) -> None:
    path = tmp_path / "new" / "plot.png"
    draw(models(make, count), path)  # type: ignore[operator]
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.height > 300
    assert [file.name for file in path.parent.iterdir()] == ["plot.png"]


def test_nothing_to_draw(tmp_path: Path, make: SimpleNamespace) -> None:
    only_tasks = evaluate(make.scripted(), [Suite("tasks", [make.exact("t", "x")])], [])
    with pytest.raises(UsageError, match="no model has both"):
        trade_off([only_tasks], tmp_path / "plot.png")
    unseen = evaluate(make.scripted(sees_images=False), [Suite("t", [make.exact("t", "x", image=make.picture())])], [])
    with pytest.raises(UsageError, match="no axis has a score"):
        four_axes([unseen], tmp_path / "plot.png")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way(tmp_path: Path, make: SimpleNamespace) -> None:
    (tmp_path / "plot.png").mkdir()
    with pytest.raises(OutputError, match=r"plot\.png"):
        four_axes(models(make, 1), tmp_path / "plot.png")
