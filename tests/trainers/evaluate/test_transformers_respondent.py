"""Models here answer right: batches, templates, stops, draws and likelihoods, on small trained checkpoints."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from safegraft.errors import CheckpointError, InputError, UsageError
from safegraft_trainers.evaluate.example import Example, Picture
from safegraft_trainers.evaluate.respondents import TransformersRespondent
from safegraft_trainers.evaluate.respondents.batching import batches
from safegraft_trainers.lab.shipped import CHECKPOINTS, questions
from safegraft_trainers.loading import Loaded, load


@pytest.fixture(scope="module")
def llm() -> Loaded:
    return load(str(CHECKPOINTS / "aligned-llm"), dtype="float32")


@pytest.fixture(scope="module")
def lvlm() -> Loaded:
    return load(str(CHECKPOINTS / "adapted-lvlm"), dtype="float32")


def texts(make: SimpleNamespace, count: int = 12) -> list[Example]:
    prompts = [one.prompt for one in questions().examples if one.image is None][:count]
    return [make.exact(f"e{place}", "", prompt=prompt) for place, prompt in enumerate(prompts)]


def seen(make: SimpleNamespace, count: int = 6) -> list[Example]:
    colours = ("red", "green", "blue")
    return [
        make.exact(f"i{one}", "", prompt="which shape is red ?", image=make.picture(colours[one % 3]))
        for one in range(count)
    ]


def mixed(make: SimpleNamespace) -> list[Example]:
    pairs = zip(texts(make, 6), seen(make, 6), strict=True)
    return [one for pair in pairs for one in pair]


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_answers_come_in_order_whatever_the_batch(batch_size: int, lvlm: Loaded, make: SimpleNamespace) -> None:
    examples = mixed(make)
    alone = [TransformersRespondent(lvlm, max_new_tokens=12).answer([one])[0] for one in examples]
    assert len(set(alone)) > 2
    assert TransformersRespondent(lvlm, max_new_tokens=12, batch_size=batch_size).answer(examples) == alone


def test_batches_keep_images_apart_and_begin_with_the_longest(make: SimpleNamespace) -> None:
    examples = [make.exact(str(size), "", prompt="x" * size) for size in (1, 5, 3)] + seen(make, 2)
    found = list(batches(examples, 2))
    assert found == [[1, 2], [0], [3, 4]]


def test_a_text_model_refuses_images(llm: Loaded, make: SimpleNamespace) -> None:
    respondent = TransformersRespondent(llm)
    assert not respondent.sees_images
    with pytest.raises(InputError, match="sees no images, and 2 prompts have one"):
        respondent.answer(seen(make, 2))


def test_a_broken_image_is_named(lvlm: Loaded, make: SimpleNamespace) -> None:
    broken = make.exact("b", "", image=Picture(b"no image", "broken.png"))
    with pytest.raises(InputError, match=r"broken\.png: the image is of no kind that pillow reads"):
        TransformersRespondent(lvlm).answer([broken])


def test_an_answer_ends_where_the_template_ends_a_turn(llm: Loaded, make: SimpleNamespace) -> None:
    """A checkpoint whose files name another end, as chat models made from base models do: it must not babble on."""
    example, tokenizer, settings = texts(make, 1)[0], llm.tokenizer, llm.model.generation_config
    right = TransformersRespondent(llm, max_new_tokens=24).answer([example])
    kept = tokenizer.eos_token, tokenizer.chat_template, settings.eos_token_id
    fixed = tokenizer.chat_template.replace("{{ eos_token }}", tokenizer.eos_token)
    assert fixed != tokenizer.chat_template
    tokenizer.eos_token, tokenizer.chat_template, settings.eos_token_id = tokenizer.pad_token, fixed, None
    try:
        assert TransformersRespondent(llm, max_new_tokens=24).answer([example]) == right
        tokenizer.chat_template = fixed.replace(kept[0], "")
        assert TransformersRespondent(llm, max_new_tokens=24).answer([example]) != right, "this test shows nothing"
    finally:
        tokenizer.eos_token, tokenizer.chat_template, settings.eos_token_id = kept


def test_settings_of_the_checkpoint_do_not_leak_in(llm: Loaded, make: SimpleNamespace) -> None:
    """Many chat models bring do_sample and a temperature: greedy means greedy."""
    examples = texts(make)
    right = TransformersRespondent(llm, max_new_tokens=12).answer(examples)
    settings = llm.model.generation_config
    settings.do_sample, settings.temperature, settings.top_k = True, 5.0, 50
    try:
        assert TransformersRespondent(llm, max_new_tokens=12).answer(examples) == right
    finally:
        settings.do_sample, settings.temperature, settings.top_k = False, None, None


def test_draws_are_repeatable_and_leave_the_generator_alone(llm: Loaded, make: SimpleNamespace) -> None:
    examples = texts(make)

    def drawn(seed: int) -> list[str]:
        return TransformersRespondent(llm, max_new_tokens=12, temperature=3.0, seed=seed).answer(examples)

    before = torch.random.get_rng_state()
    assert drawn(1) == drawn(1) != drawn(2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_settings_say_all_that_answers_depend_on(llm: Loaded) -> None:
    greedy, other = TransformersRespondent(llm), TransformersRespondent(llm, seed=3, batch_size=2)
    assert greedy.settings == other.settings, "neither changes a greedy answer"
    assert greedy.settings != TransformersRespondent(llm, max_new_tokens=8).settings
    warm = [TransformersRespondent(llm, temperature=1.0, seed=seed).settings for seed in (0, 1)]
    assert warm[0] != warm[1]


def test_a_model_without_a_chat_template_gets_the_plain_prompt(llm: Loaded, make: SimpleNamespace) -> None:
    template, llm.front.chat_template = llm.front.chat_template, None
    try:
        respondent = TransformersRespondent(llm, max_new_tokens=3)
        assert respondent.settings["chat_template"] is False
        example = make.exact("e", "", prompt="what is nipik ?", system="be kind")
        ids = llm.front("be kind\n\nwhat is nipik ?", return_tensors="pt").input_ids
        expected = llm.model.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
        assert respondent.answer([example]) == [llm.front.decode(expected, skip_special_tokens=True).strip()]
    finally:
        llm.front.chat_template = template


def test_a_processor_without_a_chat_template_still_shows_the_image(lvlm: Loaded, make: SimpleNamespace) -> None:
    template, lvlm.front.chat_template = lvlm.front.chat_template, None
    try:
        red, blue = (make.exact("e", "", prompt="what ?", image=make.picture(one)) for one in ("red", "blue"))
        respondent = TransformersRespondent(lvlm, max_new_tokens=3)
        assert len(respondent.answer([red, blue])) == 2
    finally:
        lvlm.front.chat_template = template


def test_a_template_that_fails_is_the_checkpoints_fault(llm: Loaded, make: SimpleNamespace) -> None:
    template = llm.front.chat_template
    llm.front.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + template
    )
    try:
        with pytest.raises(CheckpointError, match=r"its chat template fails on \(system, user\): no system here"):
            TransformersRespondent(llm).answer([make.exact("e", "", system="be kind")])
    finally:
        llm.front.chat_template = template


def test_likelihoods_are_sums_of_log_probabilities(llm: Loaded) -> None:
    """By hand: every token's probability after those before it, one sequence at a time, no padding."""
    pairs = [("what is nipik ?", " a plant ."), ("", "go to the attic ."), ("", "attic the go to to to .")]
    told = TransformersRespondent(llm, batch_size=3).likelihoods(pairs)
    for (context, continuation), value in zip(pairs, told, strict=True):
        whole = llm.front(context + continuation).input_ids
        shared = len(llm.front(context).input_ids) if context else 1
        if not context and whole[0] != llm.front.bos_token_id:
            whole = [llm.front.bos_token_id, *whole]
        with torch.inference_mode():
            logits = llm.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        by_hand = sum(float(logits[place - 1, whole[place]]) for place in range(shared, len(whole)))
        assert value == pytest.approx(by_hand, abs=1e-4)
        assert math.isfinite(value)
    assert told[1] > told[2], "a sentence is likelier than its words in disorder"


def test_a_text_of_no_tokens_has_no_likelihood(llm: Loaded) -> None:
    with pytest.raises(InputError, match="has no likelihood"):
        TransformersRespondent(llm).likelihoods([("what is nipik ?", "")])


@pytest.mark.parametrize(
    "settings", [{"max_new_tokens": 0}, {"batch_size": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_settings_out_of_range(settings: dict[str, float], llm: Loaded) -> None:
    with pytest.raises(UsageError, match="a model is asked with"):
        TransformersRespondent(llm, **settings)  # type: ignore[arg-type]


def test_threads_are_set_for_the_time_of_an_answer(llm: Loaded, make: SimpleNamespace) -> None:
    before = torch.get_num_threads()
    TransformersRespondent(llm, max_new_tokens=2, threads=before + 1).answer(texts(make, 1))
    assert torch.get_num_threads() == before


def test_names_and_digests_are_the_models(llm: Loaded) -> None:
    respondent = TransformersRespondent(dataclasses.replace(llm, name="called", digest="d"))
    assert (respondent.name, respondent.digest) == ("called", "d")
