"""Reading a data set: what is drawn, what is refused, and how that is said."""

import sys
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safegraft.calibration import open_data
from safegraft.errors import InputChangedError, InputError
from safegraft.recipe.model import CalibrationSet

WHERE = "recipe.yml:7: calibration.task.data"
PAIR = {"prompt": "q", "response": "a"}


def spec(**changes: Any) -> CalibrationSet:
    values: dict[str, Any] = {"fields": {"text": "text"}, "samples": 128, "seed": 0, "max_length": 64}
    return CalibrationSet(name="task", data="d", at=("calibration", "task"), **{**values, **changes})


def many(count: int) -> list[dict[str, str]]:
    return [{"text": f"text {number}"} for number in range(count)]


def texts(data: Any) -> list[str]:
    return [sample.texts["text"] for sample in data.samples]


def test_all_rows_are_used_when_they_are_few(data: Any) -> None:
    opened = open_data(spec(), data.jsonl(many(3)), WHERE)
    assert texts(opened) == ["text 0", "text 1", "text 2"]
    assert opened.notes == ("task: 128 samples are asked for and the data has 3: all are used",)


def test_a_draw_depends_on_the_seed_and_holds_smaller_draws(data: Any) -> None:
    path = data.jsonl(many(50))
    ten = texts(open_data(spec(samples=10), path, WHERE))
    assert ten == texts(open_data(spec(samples=10), path, WHERE))
    assert ten == sorted(ten, key=lambda text: int(text.split()[1]))  # in the file's order
    assert set(ten) < set(texts(open_data(spec(samples=20), path, WHERE)))
    assert ten != texts(open_data(spec(samples=10, seed=1), path, WHERE))
    # Pinned: the draw is part of what a plan's digest stands for.
    assert [int(text.split()[1]) for text in ten] == [3, 5, 13, 24, 33, 34, 35, 37, 39, 43]


def test_jsonl_and_parquet_give_the_same(data: Any) -> None:
    rows = [{"q": f"q{n}", "a": f"a{n}", "other": n} for n in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), data.folder / "d.parquet")
    one = open_data(spec(fields=PAIR, samples=7), data.jsonl(rows), WHERE)
    other = open_data(spec(fields=PAIR, samples=7), data.folder / "d.parquet", WHERE)
    assert [sample.texts for sample in one.samples] == [sample.texts for sample in other.samples]
    assert one.digest == other.digest


def test_the_digest_is_of_what_matters(data: Any) -> None:
    path = data.jsonl(many(5))
    digest = open_data(spec(), path, WHERE).digest
    assert open_data(spec(seed=4), path, WHERE).digest == digest  # the same five rows
    assert open_data(spec(), data.jsonl([{"text": row["text"], "x": 1} for row in many(5)]), WHERE).digest == digest
    assert open_data(spec(max_length=65), path, WHERE).digest != digest
    assert open_data(spec(), data.jsonl(many(4)), WHERE).digest != digest
    assert open_data(spec(fields={"prompt": "text", "response": "text"}), path, WHERE).digest != digest


def test_rows_with_an_empty_text_are_left_out(data: Any) -> None:
    rows = [{"q": "q", "a": "a"}, {"q": "q", "a": " "}, {"q": "q", "a": None}]
    opened = open_data(spec(fields=PAIR), data.jsonl(rows), WHERE)
    assert opened.count == 1
    assert opened.notes[0] == "task: 2 rows with an empty text are left out"


def test_images_lie_beside_the_data_or_in_it(data: Any) -> None:
    name = data.picture("a.png", 1)
    content = (data.folder / name).read_bytes()
    fields = {**PAIR, "image": "image"}
    rows = [{"q": "<image>\nwhat", "a": "a", "image": value} for value in (name, {"path": name}, None)]
    opened = open_data(spec(fields=fields), data.jsonl(rows), WHERE)
    pq.write_table(
        pa.Table.from_pylist([{"q": "what", "a": "a", "image": {"bytes": content, "path": None}}]),
        data.folder / "d.parquet",
    )
    embedded = open_data(spec(fields=fields), data.folder / "d.parquet", WHERE)
    images = [sample.image for sample in (*opened.samples, *embedded.samples)]
    assert [image and image.read() for image in images] == [content, content, None, content]
    assert {sample.texts["prompt"] for sample in opened.samples} == {"what"}  # LLaVA's placeholder is taken out
    assert "a text-only model is shown the texts without their images" in opened.notes[-1]


def test_an_image_that_changes_afterwards_is_noticed(data: Any) -> None:
    row = {"text": "t", "image": data.picture("a.png", 1)}
    opened = open_data(spec(fields={"text": "text", "image": "image"}), data.jsonl([row]), WHERE)
    data.picture("a.png", 2)
    assert opened.samples[0].image is not None
    with pytest.raises(InputChangedError, match="the image changed"):
        opened.samples[0].image.read()


IMAGES = {"text": "text", "image": "image"}


def test_images_do_not_leave_the_folder_through_a_link(data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (data.folder / data.picture("a.png", 1)).rename(outside / "a.png")
    (data.folder / "link.png").symlink_to(outside / "a.png")
    (data.folder / "folder").symlink_to(outside)
    for name in ("link.png", "folder/a.png"):
        with pytest.raises(InputError, match="leaves the folder of the data file through a symbolic link"):
            open_data(spec(fields=IMAGES), data.jsonl([{"text": "t", "image": name}]), WHERE)


def test_images_in_the_hubs_cache_are_links(data: Any) -> None:
    repository = data.folder / "datasets--me--set"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (data.folder / data.picture("a.png", 1)).rename(blobs / "1f")
    (snapshot / "a.png").symlink_to(blobs / "1f")
    rows = data.jsonl([{"text": "t", "image": "a.png"}])
    rows.rename(snapshot / "data.jsonl")
    opened = open_data(spec(fields=IMAGES), snapshot / "data.jsonl", WHERE)
    assert opened.samples[0].image.read() == (blobs / "1f").read_bytes()


def test_half_a_surrogate_pair_is_no_text(data: Any) -> None:
    (data.folder / "d.jsonl").write_text('{"text": "\\ud800 cat"}\n')
    with pytest.raises(InputError, match=r"row 1: column 'text' .* holds half a surrogate pair"):
        open_data(spec(), data.folder / "d.jsonl", WHERE)


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        ("", {"text": "text"}, "holds nothing to show a model: it has no rows"),
        ('{"text": ""}', {"text": "text"}, "all 1 of its rows have an empty text"),
        ('{"text": "a"}\n{"txt": "b"}', {"text": "text"}, r"row 2: has no column 'text' \(for `text`\); it has 'txt'"),
        ('{"text": ["a"]}', {"text": "text"}, r"row 1: column 'text' \(for `text`\) holds a list, not a text"),
        ('{"text": 3}', {"text": "text"}, "holds a number, not a text"),
        ('{"text": "a"', {"text": "text"}, "line 1: is not valid JSON"),
        ("[1]", {"text": "text"}, "line 1: must hold one JSON object"),
        ('{"text": "a", "image": "no.png"}', IMAGES, "row 1: there is no image no.png where its row says"),
        ('{"text": "a", "image": "../no.png"}', IMAGES, "must be a path inside the folder of the data file"),
        ('{"text": "a", "image": "/etc/no.png"}', IMAGES, "must be a path inside the folder of the data file"),
        ('{"text": "a", "image": 3}', IMAGES, "its image is a number, neither a path nor bytes"),
        ("PAR1 and then nothing", {"text": "text"}, "is not a sound parquet file"),
    ],
)
def test_what_is_wrong_is_said_with_its_row(content: str, fields: dict[str, str], message: str, data: Any) -> None:
    path = data.folder / "data.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        open_data(spec(fields=fields), path, WHERE)
    assert all(problem.where.startswith(WHERE) for problem in caught.value.problems)
    assert str(data.folder) not in str(caught.value)


def test_several_problems_come_together(data: Any) -> None:
    path = data.jsonl([{"text": 1}, {"text": "fine"}, {"text": 2}])
    with pytest.raises(InputError) as caught:
        open_data(spec(), path, WHERE)
    assert len(caught.value.problems) == 2


def test_a_file_that_is_not_there(data: Any) -> None:
    with pytest.raises(InputError, match=r"there is no file nowhere\.jsonl"):
        open_data(spec(), data.folder / "nowhere.jsonl", WHERE)


def test_a_column_that_a_parquet_file_lacks(data: Any) -> None:
    pq.write_table(pa.Table.from_pylist([{"a": "x"}]), data.folder / "d.parquet")
    with pytest.raises(InputError, match=r"d\.parquet has no column 'text'; it has 'a'"):
        open_data(spec(), data.folder / "d.parquet", WHERE)


def test_parquet_without_pyarrow_names_what_to_install(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.Table.from_pylist([{"text": "x"}]), data.folder / "d.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"safegraft\[calibration\]"):
        open_data(spec(), data.folder / "d.parquet", WHERE)
