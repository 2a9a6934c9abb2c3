"""LLaVA's JSON, Hugging Face's messages + images, and every way in which a row can be wrong."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from safegraft.errors import InputError
from safegraft_trainers.data.llava import load_llava

Write = Callable[..., Path]
PLACE = {"type": "image", "text": ""}


def said(role: str, *parts: str | dict[str, str]) -> dict[str, Any]:
    content = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": content}


def human(value: Any) -> dict[str, Any]:
    return {"from": "human", "value": value}


def gpt(value: Any) -> dict[str, Any]:
    return {"from": "gpt", "value": value}


def row(*turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"conversations": list(turns), **more}


GOOD = row(human("Hello"), gpt("Hi"), id="good")


def colour(image: Any) -> tuple[int, ...]:
    """Rounded to one of eight corners of the cube: JPEG is not exact."""
    return tuple(255 * (channel > 127) for channel in image.getpixel((0, 0)))


def test_mix665k_rows(write_rows: Write) -> None:
    """Several turns, the place before, after and in the middle of the question, and a row without an image."""
    rows = [
        row(
            human("<image>\nWhat is it?"), gpt("A square."), human("Its colour?"), gpt("Red."), id="a", image="red.png"
        ),
        row(human("What is it?\n<image>"), gpt("A square."), id=7, image="sub/blue.jpg"),
        row(human("This <image> or that?"), gpt("This."), image="green.png"),
        row(human("Hello"), gpt("Hi"), id="text", model=""),
    ]
    data = load_llava(write_rows(rows))
    assert data["id"] == ["a/1", "a/2", "7", "3", "text"]
    opening = said("user", PLACE, "What is it?")
    assert data[0]["prompt"] == [opening]
    assert data[0]["completion"] == [said("assistant", "A square.")]
    assert data[1]["prompt"] == [opening, said("assistant", "A square."), said("user", "Its colour?")]
    assert data[1]["completion"] == [said("assistant", "Red.")]
    assert data[2]["prompt"] == [said("user", "What is it?", PLACE)]
    assert data[3]["prompt"] == [said("user", "This", PLACE, "or that?")]
    assert data[4]["prompt"] == [said("user", "Hello")]
    assert data[4]["images"] == []
    colours = [[colour(image) for image in images] for images in data["images"]]
    assert colours == [[(255, 0, 0)], [(255, 0, 0)], [(0, 0, 255)], [(0, 255, 0)], []]


def test_last_turn_only(write_rows: Write) -> None:
    rows = [row(human("<image>1"), gpt("one"), human("2"), gpt("two"), id="a", image="red.png"), GOOD]
    data = load_llava(write_rows(rows), turns="last")
    assert data["id"] == ["a", "good"]
    assert data[0]["completion"] == [said("assistant", "two")]
    assert [message["role"] for message in data[0]["prompt"]] == ["user", "assistant", "user"]


def test_a_turn_has_the_images_shown_so_far(write_rows: Write) -> None:
    rows = [
        row(
            human("<image><image>a"),
            gpt("1"),
            human("<image>b"),
            gpt("2"),
            image=["red.png", "green.png", "sub/blue.jpg"],
        )
    ]
    data = load_llava(write_rows(rows))
    assert [len(images) for images in data["images"]] == [2, 3]
    assert colour(data[1]["images"][2]) == (0, 0, 255)


def test_rows_with_and_without_images_have_one_type(write_rows: Write) -> None:
    """Both load, and concatenate, whichever comes first: an untyped empty list would be a list of null."""
    text = load_llava(write_rows([GOOD], "text.json"))
    pictured = load_llava(write_rows([row(human("<image>"), gpt("red"), image="red.png")], "pictured.json"))
    assert text.features == pictured.features
    both = datasets.concatenate_datasets([text, pictured])
    assert [len(images) for images in both["images"]] == [0, 1]


def test_images_become_rgb_when_read_and_not_before(write_rows: Write, pictures: Path) -> None:
    Image.new("L", (4, 4), 200).save(pictures / "grey.png")
    data = load_llava(write_rows([row(human("<image>"), gpt("grey"), image="grey.png")]))
    stored = data.data.column("images").to_pylist()
    assert stored == [[{"bytes": None, "path": str(pictures / "grey.png")}]]
    assert data[0]["images"][0].mode == "RGB"


def test_messages_and_images(pictures: Path) -> None:
    """Contents as texts and as parts; images that name no place come first, as in TRL; stored bytes stay stored."""
    red, green = (pictures / name for name in ("red.png", "green.png"))
    text = datasets.Value("string")
    messages = datasets.List({"role": text, "content": datasets.List({"type": text, "text": text})})
    features = datasets.Features({"messages": messages, "images": datasets.List(datasets.Image())})
    looking = {"role": "user", "content": [{"type": "text", "text": "What"}, {"type": "image", "text": None}]}
    rows = {
        "messages": [
            [said("system", "Be brief."), looking, said("assistant", "Red.")],
            [said("user", "And?"), said("assistant", "Green.")],
        ],
        "images": [[{"bytes": red.read_bytes(), "path": None}], [{"bytes": green.read_bytes(), "path": "x.png"}]],
    }
    data = load_llava(datasets.Dataset.from_dict(rows, features=features))
    assert data[0]["prompt"] == [said("system", "Be brief."), said("user", "What", PLACE)]
    assert data[1]["prompt"] == [said("user", PLACE, "And?")]
    assert [[colour(image) for image in images] for images in data["images"]] == [[(255, 0, 0)], [(0, 255, 0)]]
    assert data.data.column("images")[1].as_py() == [{"bytes": green.read_bytes(), "path": None}]


def test_string_messages_in_jsonl(write_rows: Write) -> None:
    messages = [{"role": "user", "content": "Look"}, {"role": "assistant", "content": "I do"}]
    data = load_llava(write_rows([{"messages": messages, "images": ["red.png", "green.png"]}], "data.jsonl"))
    assert data[0]["prompt"] == [said("user", PLACE, PLACE, "Look")]


def test_our_own_columns_come_back(write_rows: Write, tmp_path: Path) -> None:
    """What was loaded, saved and loaded again is the same: a filtered set can be kept."""
    rows = [row(human("<image>1"), gpt("one"), human("2"), gpt("two"), id="a", image="red.png"), GOOD]
    data = load_llava(write_rows(rows))
    data.save_to_disk(tmp_path / "saved")
    again = load_llava(tmp_path / "saved")
    assert again["id"] == data["id"]
    assert again["prompt"] == data["prompt"]
    assert [len(images) for images in again["images"]] == [1, 1, 0]


@pytest.mark.parametrize("extra", [None, "text"])
def test_stored_images_of_several_turns(
    extra: str | None, pictures: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stored image that several rows show is copied, in pieces, to the cache, and found there the next time."""
    monkeypatch.setattr("safegraft_trainers.data.album.ROWS_AT_ONCE", 2)
    names = ["red.png", "green.png", "sub/blue.jpg"]
    talk = [[{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)]] * 3
    images: list[Any] = [[{"bytes": (pictures / name).read_bytes(), "path": None}] for name in names]
    if extra:
        images.insert(1, [])
        talk = [*talk, talk[0]]
    features = datasets.Features(
        {
            "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
            "images": datasets.List(datasets.Image()),
        }
    )
    datasets.Dataset.from_dict({"messages": talk, "images": images}, features=features).save_to_disk(tmp_path / "in")
    expected = [c for c in [(255, 0, 0), *([None] if extra else []), (0, 255, 0), (0, 0, 255)] for _ in range(2)]
    for _ in range(2):
        data = load_llava(tmp_path / "in")
        assert [colour(images[0]) if images else None for images in data["images"]] == expected
        files = list((own_cache / "safegraft").iterdir())
        assert len(files) == 1
        assert files[0].suffix == ".arrow"


FAULTS = {
    "no conversation": ({"id": "x", "text": "y"}, "has no conversation: one of `conversations`"),
    "no object": ("text", "must be one JSON object"),
    "empty list": (row(), "conversations is empty"),
    "wrong type of list": ({"conversations": "hello"}, "conversations is a text; it must be a list"),
    "turn is no object": ({"conversations": ["hello"]}, "message 1, is a text"),
    "empty question": (row(human("  "), gpt("b")), "message 1, its `value` is empty"),
    "empty answer": (row(human("a"), gpt("")), "message 2, its `value` is empty"),
    "text is a number": (row(human("a"), gpt(3)), "message 2, its `value` is a number, not a text"),
    "text is missing": (row(human("a"), {"from": "gpt"}), "message 2, its `value` is missing"),
    "half a surrogate": (row(human("a"), gpt("\ud800")), "half a surrogate pair"),
    "unknown role": (row(human("a"), {"from": "tool", "value": "b"}), "unknown role 'tool' (`from`); known: 'human'"),
    "no role": (row(human("a"), {"value": "b"}), "unknown role missing"),
    "assistant first": (row(gpt("b"), human("a"), gpt("b")), "starts with the assistant"),
    "two in a row": (row(human("a"), human("a"), gpt("b")), "two user messages in a row: join them"),
    "late system": (row(human("a"), {"from": "system", "value": "s"}, gpt("b")), "system message in the middle"),
    "system alone": (row({"from": "system", "value": "s"}), "holds a system message alone"),
    "no answer": (row(human("a")), "ends with the user: add the assistant's answer"),
    "place without image": (row(human("<image>a"), gpt("b")), "names a place (<image>) for 1 and has no image"),
    "too few places": (row(human("<image>a"), gpt("b"), image=["red.png", "green.png"]), "for 1 and has 2 images"),
    "place in an answer": (row(human("a"), gpt("<image>"), image="red.png"), "the assistant says <image>"),
    "image is a number": (row(human("<image>"), gpt("b"), image=4), "its image is a number; it must be a path"),
    "image outside": (row(human("<image>"), gpt("b"), image="../data.json"), "lies outside the image folder"),
    "image absolute": (row(human("<image>"), gpt("b"), image="/etc/hostname"), "lies outside the image folder"),
    "image is a URL": (row(human("<image>"), gpt("b"), image="https://x.org/a.png"), "download it"),
    "image of no kind": (row(human("<image>"), gpt("b"), image="data.json"), "of no kind that pillow reads"),
    "image in base64": (row(human("<image>"), gpt("b"), image="A" * 9000), "is no path of a file"),
    "image missing": (row(human("<image>"), gpt("b"), image="no.png"), "1 rows name images that are not in"),
    "part of another type": (
        {"messages": [{"role": "user", "content": [{"type": "video"}]}, {"role": "assistant", "content": "b"}]},
        "a part of type 'video'; known: 'text', 'image'",
    ),
    "image inside a part": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": "red.png"}]},
                {"role": "assistant", "content": "b"},
            ]
        },
        "put it in the column `images`",
    ),
    "no parts": (
        {"messages": [{"role": "user", "content": []}, {"role": "assistant", "content": "b"}]},
        "its `content` is empty",
    ),
}


@pytest.mark.parametrize(("faulty", "message"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_row(faulty: Any, message: str, write_rows: Write, caplog: pytest.LogCaptureFixture) -> None:
    """Named with its number; or left out, with a warning that says the same."""
    path = write_rows([GOOD, faulty])
    with pytest.raises(InputError) as caught:
        load_llava(path)
    assert message in str(caught.value)
    assert "row 2" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        assert load_llava(path, skip_faulty=True)["id"] == ["good"]
    assert "1 rows are left out" in caplog.text
    assert message in caplog.text


def test_all_faults_at_once(write_rows: Write) -> None:
    """The first five of a kind, and how many more there are."""
    missing = [row(human("<image>"), gpt("b"), image=f"{number}.png") for number in range(7)]
    empty = [row(human(""), gpt("b")) for _ in range(8)]
    with pytest.raises(InputError) as caught:
        load_llava(write_rows([*missing, GOOD, *empty]))
    lines = [str(problem) for problem in caught.value.problems]
    assert [line.partition(":")[0] for line in lines[:5]] == [f"data.json row {number}" for number in range(9, 14)]
    assert lines[5] == "data.json: 3 more rows cannot be used"
    assert "7 rows name images" in lines[6]
    assert "'4.png' (row 5) and 2 more;" in lines[6]
    assert "'5.png'" not in lines[6]


def test_no_row_left(write_rows: Write) -> None:
    with pytest.raises(InputError, match="holds no rows"):
        load_llava(write_rows([]))
    with pytest.raises(InputError, match="no row is left"):
        load_llava(write_rows([row(human(""), gpt("b"))]), skip_faulty=True)


def test_a_broken_image_is_found_unless_told_not_to(write_rows: Write, pictures: Path) -> None:
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but then nothing")
    (pictures / "empty.png").touch()
    rows = [row(human("<image>"), gpt("b"), image=name) for name in ("broken.png", "empty.png")]
    path = write_rows(rows)
    with pytest.raises(InputError) as caught:
        load_llava(path)
    assert [problem.where for problem in caught.value.problems[:2]] == ["data.json row 1", "data.json row 2"]
    assert len(load_llava(path, verify=False)) == 2


def test_a_broken_stored_image_is_found() -> None:
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "response": datasets.Value("string"), "image": datasets.Image()}
    )
    columns = {"prompt": ["a"], "response": ["b"], "image": [{"bytes": b"no image", "path": None}]}
    with pytest.raises(InputError, match="row 1: its image is of no kind"):
        load_llava(datasets.Dataset.from_dict(columns, features=features))


def test_a_link_out_of_the_folder(write_rows: Write, pictures: Path, tmp_path: Path) -> None:
    """Both a linked file and a linked folder; a link inside is fine, and so is one into the Hub cache's blobs."""
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copy(pictures / "red.png", outside / "red.png")
    (pictures / "file.png").symlink_to(outside / "red.png")
    (pictures / "folder").symlink_to(outside)
    (pictures / "inside.png").symlink_to(pictures / "red.png")
    for name in ("file.png", "folder/red.png"):
        with pytest.raises(InputError, match="lies outside the image folder"):
            load_llava(write_rows([row(human("<image>"), gpt("b"), image=name)]))
    assert len(load_llava(write_rows([row(human("<image>"), gpt("b"), image="inside.png")]))) == 1
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "1234"
    blobs = snapshot.parents[1] / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    shutil.copy(pictures / "red.png", blobs / "abcd")
    (snapshot / "x.png").symlink_to("../../blobs/abcd")
    path = write_rows([row(human("<image>"), gpt("b"), image="x.png")])
    assert len(load_llava(path, snapshot)) == 1


def test_image_folder(write_rows: Write, pictures: Path, tmp_path: Path) -> None:
    path = write_rows([row(human("<image>"), gpt("b"), image="blue.jpg")])
    assert len(load_llava(path, pictures / "sub")) == 1
    with pytest.raises(InputError, match="no such folder of images"):
        load_llava(path, tmp_path / "nowhere")
