"""An evaluation in a card: read strictly, told whose it is, in the place of the warning, without a trace of before."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

import safegraft
from safegraft.errors import InputError, UsageError
from safegraft.hub.evaluated import BEGIN, END, has_evaluation, has_warning, with_evaluation
from safegraft.hub.evaluation import FULL, PLAN, SAMPLED, EvaluationDocument, known_digests, read_evaluation
from safegraft.hub.markdown import code, fence
from safegraft.local import open_model

HERE = "0" * 64


def score(name: str, value: float, axis: str, **more: Any) -> dict[str, Any]:
    low, high = max(0.0, value - 0.1), min(1.0, value + 0.1)
    facts: dict[str, Any] = {"name": name, "value": value, "low": low, "high": high, "n": 20, "axis": axis}
    lower = axis != "helpfulness"
    return {**facts, "lower_is_better": lower, "dataset": None, "judge": "patterns", "images": False, **more}


def model(name: str = "out/merged", attacked: float = 0.25, helped: float = 0.75, **more: Any) -> dict[str, Any]:
    helpful = {"judge": None}
    facts: dict[str, Any] = {
        "model": name,
        "digest": HERE,
        "settings": {"through": "transformers", "max_new_tokens": 64},
        "seed": 0,
        "versions": {"torch": "2.13.0"},
        "suites": [{"name": "advbench", "digest": "1" * 64, "n": 20}, {"name": "own", "digest": "2" * 64, "n": 20}],
        "judges": [{"name": "patterns"}, {"name": "classifier:/home/me/guard"}],
        "scores": [
            score("text_safety", attacked, "text_safety"),
            score("text_safety@patterns", attacked, "text_safety"),
            score("text_safety@classifier:/home/me/guard", 0.5, "text_safety", judge="classifier:/home/me/guard"),
            score("advbench", attacked, "text_safety", dataset="walledai/AdvBench"),
            score("helpfulness", helped, "helpfulness", **helpful),
            score("own/helpfulness", helped, "helpfulness", dataset="own", images=True, **helpful),
        ],
        "measured": [
            {"name": "arc/acc", "value": 12.5, "low": 12.0, "high": 13.0, "n": 9, "lower_is_better": False},
        ],
        "skipped": {},
    }
    return {**facts, **more}


def document(*models: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"format": "safegraft-evaluation/1", "evaluations": [*models], **more}).encode()


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory, models) -> bytes:
    with safegraft.open(models.linear()) as merged:
        return merged.files["README.md"].read()


def test_it_takes_the_place_of_the_warning_and_leaves_the_rest_alone(card: bytes) -> None:
    after = with_evaluation(card, read_evaluation(document(model())), "trade-off.png", name="mine")
    assert not has_evaluation(card)
    assert has_evaluation(after)
    text, before = after.decode(), card.decode()
    section = text.partition(BEGIN)[2].partition(END)[0]
    assert "has not been evaluated" not in text
    assert "![Attacks and over-refusal against helpfulness](trade-off.png)" in section
    assert "| attacks by text | lower | 20 | 25.0 [15.0, 35.0] |" in section
    assert "| attacks by text, by `classifier:guard` | lower | 20 | 50.0" in section
    assert section.count("attacks by text") == 2, "the default judge's score is told once"
    assert "| `arc/acc` | higher | 9 | 12.5 [12, 13] |" in section
    assert "/home" not in text
    assert "it is no proof of safety" in section
    assert text.endswith(before.partition("## Inputs")[2])
    assert before.partition("---\n\n")[2].partition("> [!WARNING]")[0] in text


def test_the_hub_reads_the_numbers_and_keeps_what_was_there(card: bytes) -> None:
    data = ModelCard(with_evaluation(card, read_evaluation(document(model())), name="mine").decode()).data
    assert data.model_name == "mine"
    assert data.tags == ModelCard(card.decode()).data.tags
    told = {one.dataset_name: one for one in data.eval_results}
    attack = told["advbench"]
    assert (attack.dataset_type, attack.metric_type, attack.metric_value) == (
        "walledai/AdvBench",
        "attack_success_rate",
        25.0,
    )
    assert attack.metric_args == {"interval_95": [15.0, 35.0], "n": 20, "judge": "patterns"}
    helped = told["own/helpfulness"]
    assert (helped.task_type, helped.dataset_config, helped.metric_value) == ("image-text-to-text", "helpfulness", 75.0)
    assert set(told) == {"advbench", "own/helpfulness", "arc"}


def test_again_is_as_once_and_new_numbers_replace_old_ones(card: bytes) -> None:
    once = with_evaluation(card, read_evaluation(document(model())))
    assert with_evaluation(once, read_evaluation(document(model()))) == once
    later = with_evaluation(once, read_evaluation(document(model(attacked=0.5))), name="other")
    data = ModelCard(later.decode()).data
    assert {one.metric_value for one in data.eval_results if one.dataset_name == "advbench"} == {50.0}
    assert data.model_name == "merged", "the name that it had"
    assert later.count(b"## Evaluation") == 1


def test_other_models_stand_beside_it_with_differences_and_doubts(card: bytes) -> None:
    others = [
        model(name="/data/aligned-llm", attacked=0.1, skipped={"the model sees no images": 5}, suites=[]),
        model(name="org/lvlm@" + "5" * 40, attacked=0.9),
        model(name="elsewhere/merged", attacked=0.9),
    ]
    differences = [
        {"first": 0, "second": 2, "name": "text_safety", "value": 0.65, "low": 0.5, "high": 0.7, "n": 18},
        {"first": 1, "second": 2, "name": "text_safety", "value": 0.8, "low": 0.5, "high": 0.9, "n": 20},
    ]
    found = read_evaluation(document(model(), *others, differences=differences))
    text = with_evaluation(card, found).decode()
    assert "| better | n | this model | `aligned-llm` | `org/lvlm` | `merged (2)` |" in text
    assert "| attacks by text | lower | 18 | - | -65.0 [-70.0, -50.0] | - |" in text
    assert "10.0 [0.0, 20.0]\\* | 90.0 [80.0, 100.0] |" in text, "other prompts are marked"
    assert "`aligned-llm`: 5 of 0 prompts were not asked: `the model sees no images`" in text


def test_the_section_is_sound_markdown(card: bytes) -> None:
    """As a CommonMark parser with tables sees it: nothing is left open, and a nasty name stays in its code span."""
    nasty = "a|b`<script>[x](y)"
    found = read_evaluation(document(model(name=nasty), model(name=f"{nasty}2", skipped={nasty: 3})))
    text = with_evaluation(card, found).decode().partition("---\n\n")[2]
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    headings = [tokens[place + 1].content for place, one in enumerate(tokens) if one.type == "heading_open"]
    assert headings[1:3] == ["Evaluation", "Inputs"]
    html = "\n".join(one.content for one in tokens if one.type == "html_block")
    assert "script" not in html
    assert html.count("<details>") == html.count("</details>") == 1
    columns = {len(row) for row in rows_of(tokens)[:3]}
    assert columns == {5}, "each row has a cell for each head"


def rows_of(tokens: list[Any]) -> list[list[str]]:
    rows: list[list[str]] = []
    for place, one in enumerate(tokens):
        if one.type == "tr_open":
            rows.append([])
        elif one.type in ("td_open", "th_open"):
            rows[-1].append(tokens[place + 1].content)
    return rows


def test_a_text_without_metadata_gets_some_and_a_plot_is_a_picture_beside_it() -> None:
    found = read_evaluation(document(model()))
    text = with_evaluation(b"# Mine\n\nWords.\n", found).decode()
    assert "Words." in text
    assert ModelCard(text).data.library_name == "transformers"
    for plot in ("../x.png", "x.png)", "https://example.org/x.png", "x.html"):
        with pytest.raises(UsageError, match="is no name of a picture"):
            with_evaluation(b"", found, plot)
    with pytest.raises(InputError, match=r"README\.md: cannot be read"):
        with_evaluation(b"\xff", found)
    with pytest.raises(InputError, match=r"README\.md: its metadata cannot be used"):
        with_evaluation(b"---\nlicense: [mit\n---\n", found)


# -- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not valid JSON"),
        (b"[]", "input should be"),
        (b'{"format": "safegraft-evaluation/1"}', "evaluations: field required"),
        (document(), "evaluations: list should have at least 1 item"),
        (document(model(), format="other/1"), "format: input should be 'safegraft-evaluation/1'"),
        (document(model(digest=3)), r"evaluations\.0\.digest: input should be a valid string"),
        (document(model(scores=[], measured=[])), "no prompt could be asked and judged"),
        (document(model(scores=[score("x", 0.5, "charm")])), r"scores\.0\.axis: input should be"),
        (
            document(model(scores=[{**score("x", 0.5, "bias"), "value": 1.5}])),
            r"scores\.0\.value: input should be less than",
        ),
        (document(model(scores=[{**score("x", 0.5, "bias"), "value": 0.9}])), "does not lie within its interval"),
        (document(model(scores=[score("x", 0.5, "bias", n=-1)])), r"scores\.0\.n: input should be greater"),
        (document(model(), differences=[{"first": 0, "second": 1}]), "differences"),
        (b'{"format": "safegraft-evaluation/1", "evaluations": NaN}', "is not valid JSON|input should be"),
    ],
)
def test_a_file_that_is_none_is_told_in_words(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"^results\.json: .*({words})"):
        read_evaluation(tmp_path / "results.json")
    with pytest.raises(InputError, match=r"^the evaluation: "):
        read_evaluation(content)


def test_a_file_of_an_older_version_says_what_to_do() -> None:
    old = model()
    del old["scores"][0]["axis"]
    with pytest.raises(InputError, match="was written by an older version; run `safegraft evaluate` again"):
        read_evaluation(document(old))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"results\.json: cannot be read: No such file"):
        read_evaluation(tmp_path / "results.json")


def test_what_a_server_is_sent_says_the_same_without_answers() -> None:
    differences = [{"first": 0, "second": 1, "name": "bias", "value": 0.5, "low": 0.5, "high": 0.5, "n": 1}]
    found = read_evaluation(document(model(answers=[{"text": "secret"}]), model(name="b"), differences=differences))
    second = EvaluationDocument(found.models, found.differences, subject=1)
    sent = second.to_bytes()
    assert b"secret" not in sent
    again = read_evaluation(sent)
    assert again.evaluated == second.evaluated
    assert with_evaluation(b"# x\n", again) == with_evaluation(b"# x\n", second)


# -- whose it is --------------------------------------------------------------------------------

ALL = {PLAN: "a" * 64, FULL: "b" * 64, SAMPLED: "c" * 64}


def found_of(digest: str, through: str = "transformers") -> EvaluationDocument:
    return read_evaluation(document(model(digest=digest, settings={"through": through})))


@pytest.mark.parametrize("digest", ALL.values())
def test_it_is_of_a_model_by_any_of_its_digests(digest: str) -> None:
    assert found_of(digest).is_of(ALL) is True
    assert found_of(digest).doubt(ALL) is None


def test_another_model_is_refused_only_where_a_digest_can_tell() -> None:
    other = found_of("d" * 64)
    assert other.is_of(ALL) is False
    with pytest.raises(InputError, match="the evaluation of merged: is of another model"):
        other.doubt(ALL)
    assert other.is_of({PLAN: ALL[PLAN]}) is None, "it may have been asked as a folder"
    assert "cannot be told from its digest" in (other.doubt({PLAN: ALL[PLAN]}) or "")
    asked_elsewhere = found_of(ALL[FULL], through="http://localhost:8000/v1")
    assert asked_elsewhere.is_of(ALL) is None, "an endpoint's digest is of its address"


def test_it_finds_the_model_among_those_that_were_asked() -> None:
    found = read_evaluation(document(model(digest="d" * 64), model(name="x/mine", digest=ALL[SAMPLED])))
    assert found.evaluated.model == "out/merged"
    assert found.about(ALL).evaluated.model == "x/mine"
    assert found.about({PLAN: "e" * 64}) == found


def test_an_evaluation_of_the_inputs_alone_is_none_of_the_merge() -> None:
    found = read_evaluation(document(model(digest="d" * 64), model(name="x/mine", digest="e" * 64)))
    assert found.about({PLAN: "f" * 64}, ["d" * 64]).evaluated.model == "x/mine"
    with pytest.raises(InputError, match="of what was merged, not of the merge"):
        found.about({PLAN: "f" * 64}, ["d" * 64, "e" * 64])


def test_a_folder_has_all_digests_that_loading_it_can_give(tmp_path: Path, models) -> None:
    result = safegraft.merge(models.linear(), out=tmp_path / "merged", max_shard_size=4000)
    sha256s = {name: one.sha256 for name, one in result.files.items() if name.endswith(".safetensors")}
    known = known_digests(tmp_path / "merged", result.digest, sha256s)
    assert {PLAN, FULL, SAMPLED} == known.keys()
    opened = open_model(str(tmp_path / "merged"))
    opened.close()
    assert opened.identity.digest == known[FULL]
    assert re.fullmatch("[0-9a-f]{64}", known[PLAN])


@pytest.mark.parametrize(
    "edit",
    [
        lambda card: card.replace(b"\n", b"\r\n"),
        lambda card: b"\xef\xbb\xbf" + card,
        lambda card: b"\n\n" + card,
    ],
    ids=["Windows ends of lines", "a byte order mark", "blank lines before it"],
)
def test_what_editors_do_to_a_card_changes_nothing(card: bytes, edit: Any) -> None:
    found = read_evaluation(document(model()))
    written = with_evaluation(edit(card), found)
    assert has_evaluation(edit(written))
    assert not has_warning(written)
    assert with_evaluation(card, found) == written


MARKS = f"{BEGIN} x {END}"
LINES = f"{BEGIN}\n{END}"


def test_a_strangers_name_is_neither_an_evaluation_nor_a_warning() -> None:
    text = f"# A merge\n\nof {code(MARKS)}, of {MARKS} and\n\n{fence(LINES)}\n"
    card = f"---\nlicense: mit\n---\n\n{text}".encode()
    assert not has_evaluation(card)
    written = with_evaluation(card, read_evaluation(document(model()))).decode()
    assert text.rstrip() in written  # nothing was taken away
    assert has_evaluation(written.encode())


def test_an_evaluation_of_absurd_length_is_refused() -> None:
    many = [score(f"suite{n}", 0.5, "helpfulness") for n in range(2_001)]
    with pytest.raises(InputError, match="at most 2000 items"):
        read_evaluation(document(model(scores=many)))
