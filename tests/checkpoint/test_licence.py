"""The licence that a card declares, and heads that were built to be trouble."""

import time

import pytest

from safegraft.checkpoint.licence import Licence, read_licence


def card(head: str) -> bytes:
    return f"---\n{head}\n---\n\n# A model\n".encode()


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ("license: apache-2.0", Licence("apache-2.0")),
        ("license: Apache-2.0  # as the base model", Licence("apache-2.0")),
        ("base_model: x/y\nlicense:\n- mit\ntags:\n- merge", Licence("mit")),
        ("license: other\nlicense_name: gemma\nlicense_link: https://x/y", Licence("other", "gemma", "https://x/y")),
        ('license: "cc-by-nc-4.0"\nmodel-index:\n- name: x', Licence("cc-by-nc-4.0")),
        ("license: [mit, apache-2.0]", None),
        ("license:", None),
        ("licence: mit", None),
        ("nested:\n  license: mit", None),
    ],
)
def test_what_is_declared(head: str, licence: Licence | None) -> None:
    assert read_licence(card(head)) == licence


@pytest.mark.parametrize("text", [b"", b"# No head", b"license: mit", b"\xff\xfe", b"---\n---\nlicense: mit"])
def test_cards_without_one(text: bytes) -> None:
    assert read_licence(text) is None


BOMB = "a0: &a0 {x: 1}\n" + "\n".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12))


@pytest.mark.parametrize(
    "head",
    [
        BOMB,
        f"license: &a0 {{x: 1}}\n  {BOMB}",
        "\n".join(f"k{n}: v" for n in range(150_000)),
        "license: " + "[" * 100_000,
        "license: !!python/object/apply:os.system [true]",
        "license: !!timestamp abc",
        "license: !!bool foo",
        "license: *nobody",
        "license: &l [*l]",
    ],
)
def test_heads_that_are_trouble(head: str) -> None:
    began = time.process_time()
    found = read_licence(card(head))
    assert found is None or isinstance(found.id, str)
    assert time.process_time() - began < 2  # one of these would take hours
