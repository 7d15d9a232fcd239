"""A snippet is about the question."""

from moe_retrieval.retrieval.snippet import SNIPPET, snippet

LONG = (
    "First words of it. "
    + "Padding that says nothing. " * 20
    + "Here is the stable sort. "
    + "More padding follows. " * 20
)


def test_a_snippet_is_about_the_question():
    found = snippet(LONG, "stable sort of a tensor")
    assert "Here is the stable sort." in found
    assert found.startswith("… ")
    assert found.endswith(" …")
    assert len(found) <= SNIPPET + 4
    assert snippet(LONG, "unrelated").startswith("First words of it.")
    assert snippet("short\n  text", "x") == "short text"
    assert snippet("", "x") == ""
    assert len(snippet("x" * 500, "y")) <= SNIPPET + 4
    assert snippet("hay " * 100 + "needle " + "hay " * 100, "a needle").startswith("… needle hay")
    twice = "sort " + "hay " * 100 + "stable sort " + "hay " * 100
    assert snippet(twice, "stable sort").startswith("… stable sort hay")
