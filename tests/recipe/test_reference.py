"""Model references taken apart: path, revision, adapter, and folders whose names look like either."""

import pytest

from safegraft.recipe.reference import Reference, Source, parse_reference


@pytest.mark.parametrize(
    ("text", "here", "expected"),
    [
        ("llm", [], Reference(Source("llm"))),
        ("org/llm@v1", [], Reference(Source("org/llm", "v1"))),
        ("llm+lora", [], Reference(Source("llm"), Source("lora"))),
        ("org/llm@v1+org/lora@v2", [], Reference(Source("org/llm", "v1"), Source("org/lora", "v2"))),
        ("llm+lora", ["llm+lora"], Reference(Source("llm+lora"))),
        ("a@b+lora", ["a@b"], Reference(Source("a@b"), Source("lora"))),
        ("a@b@v1", [], Reference(Source("a@b", "v1"))),
        ("a+b+lora", ["a+b", "lora"], Reference(Source("a+b"), Source("lora"))),
        ("a+b+lora", ["a", "b+lora"], Reference(Source("a"), Source("b+lora"))),
        ("s3://bucket/a@b", [], Reference(Source("s3://bucket/a@b"))),
        ("https://me:pw@host.example/llm", [], Reference(Source("https://me:pw@host.example/llm"))),
        (
            "abfs://c@account.example/llm+me/lora@v1",
            [],
            Reference(Source("abfs://c@account.example/llm"), Source("me/lora", "v1")),
        ),
        ("org/llm@v1+s3://bucket/lora", [], Reference(Source("org/llm", "v1"), Source("s3://bucket/lora"))),
    ],
)
def test_a_reference_is_taken_apart(text: str, here: list[str], expected: Reference) -> None:
    parsed = parse_reference(text, here.__contains__)
    assert parsed == expected
    assert str(parsed) == text


@pytest.mark.parametrize(
    ("text", "here", "message"),
    [
        ("a+b+c", [], "one can be added to a model"),
        ("a+b+c", ["a", "a+b", "c", "b+c"], "one can be added to a model"),
        ("+lora", [], "lacks a folder or a name"),
        ("llm+", [], "lacks a folder or a name"),
        ("@v1", [], "lacks a folder or a name"),
        ("llm@+lora", [], "lacks a revision"),
        ("s3://bucket/llm+", [], "lacks a folder or a name"),
    ],
)
def test_what_means_nothing_is_refused(text: str, here: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_reference(text, here.__contains__)
