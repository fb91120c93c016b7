"""LMLM's lookup calls -> clean text and spans: every corner of the published annotations, by hand."""

from __future__ import annotations

import time

import pytest

from lacy_stream.prepare.lmlm import FEW_WORDS, BrokenCallError, ValueLocation, remove_calls


def call(value: str, arguments: str = "'E', 'R'") -> str:
    return f"[dblookup({arguments}) -> {value}]"


def values(annotated: str) -> list[str]:
    """What the spans cover."""
    found = remove_calls(annotated)
    return [found.text[start:end] for start, end in found.spans]


def locations(annotated: str) -> list[ValueLocation]:
    return list(remove_calls(annotated).locations.elements())


def test_example_of_the_paper() -> None:
    """The three notations give the clean snippet of appendix A.2.2, and the date as the span."""
    clean = "Napoleon was born on August 15, 1769."
    for lookup in (
        "[dblookup('Napoleon', 'Birth Date') -> August 15, 1769] ",
        "<|db_start|> Napoleon <|sep|> Birth_Date <|db_retrieve|> August 15, 1769 <|db_end|> ",
        "<|db_entity|> Napoleon<|db_relationship|> Birth Date<|db_return|> August 15, 1769<|db_end|> ",
    ):
        found = remove_calls(f"Napoleon was born on {lookup}August 15, 1769.")
        assert found == (clean, [(21, 36)], {ValueLocation.AT_ONCE: 1})


@pytest.mark.parametrize(
    "lookup",
    [
        "[DBLookup('Ada', 'Born') -> 1815]",
        "[ dblookup ('Ada', 'Born' ) - > 1815 ]",
        "[db_lookup('Ada', 'Born') --> 1815]",
        "[DB lookup('Ada', 'Born')\u21921815]",
        "<|DB_START|> Ada <|SEP|> Born <|DB_Retrieve|> 1815 <|DB_END|>",
        "<| db_entity |> Ada<| db_relationship |> Born< |db_return| > 1815<|db_end |>",
    ],
)
def test_calls_in_other_case_and_spacing(lookup: str) -> None:
    """Language models write calls in other ways, too: they are taken out and counted all the same."""
    found = remove_calls(f"Ada was born in {lookup} 1815.")
    assert found == ("Ada was born in 1815.", [(16, 20)], {ValueLocation.AT_ONCE: 1})


def test_text_without_calls() -> None:
    """Brackets, pipes and arrows of the text itself stay."""
    text = "He said [sic] it -> a|b <|x|>, \u201cso\u201d.  \n"
    assert remove_calls(text) == (text, [], {})
    assert remove_calls("") == ("", [], {})


@pytest.mark.parametrize(
    "arguments",
    [
        "'Guns N' Roses', 'O'Brien's, the singer's role'",
        "'Annie (2014)', 'Producers'",
        "'Raza Kazim','Grandchildren'",
        "'A] B [C', 'R [x'",
        "'A, B', 'C') ', 'D'",
    ],
)
def test_arguments_hold_anything(arguments: str) -> None:
    """Unescaped apostrophes, commas, parentheses and brackets in the arguments do not end a call early."""
    found = remove_calls(f"It was by {call('Ann', arguments)} Ann, then {call('Bob', arguments)} Bob.")
    assert found.text == "It was by Ann, then Bob."
    assert [found.text[a:b] for a, b in found.spans] == ["Ann", "Bob"]


def test_brackets_in_a_value() -> None:
    """A value's own brackets are counted; where they do not match, the first closing one ends the call."""
    assert remove_calls(f"Called {call('Foo [sic] bar')} Foo [sic] bar.").text == "Called Foo [sic] bar."
    assert values(f"Called {call('Foo [sic] bar')} Foo [sic] bar.") == ["Foo [sic] bar"]
    assert remove_calls(f"Called {call('Foo [1')} Foo, then {call('Bar')} Bar.").text == "Called Foo, then Bar."


@pytest.mark.parametrize(
    ("annotated", "text"),
    [
        (f"({call('May 1')} May 1 and", "(May 1 and"),
        (f"{call('May 1')} May 1", "May 1"),
        (f"(born {call('1992')}1992)", "(born 1992)"),
        (f"ends here {call('yes')}", "ends here"),
        (f"ends here {call('yes')}.", "ends here."),
        (f"ends {call('yes')} {call('no')}.\nNext", "ends.\nNext"),
        (f"a {call('b')} {call('c')} b", "a b"),
        (f"a {call('b')}{call('c')} b", "a b"),
        (f"a{call('b')} b", "a b"),
        (f"a {call('b')}\nb", "a\nb"),
        (f"a  {call('b')} b", "a  b"),
    ],
)
def test_one_space_goes_with_a_call(annotated: str, text: str) -> None:
    """Neither two spaces nor none are left where a call stood, at the end or before a mark either."""
    assert remove_calls(annotated).text == text


def test_adjacent_calls() -> None:
    """Several calls before one stretch of text each find their value in it."""
    annotated = f"He was born on {call('May 11, 1751')} {call('Boston')} May 11, 1751 in Boston."
    assert values(annotated) == ["May 11, 1751", "Boston"]
    assert locations(annotated) == [ValueLocation.AT_ONCE, ValueLocation.LATER]


@pytest.mark.parametrize(
    ("annotated", "found"),
    [
        (f"an {call('Athletic Director')} athletic director at", "athletic director"),
        (f"the {call('Guns N' + chr(39) + ' Roses')} Guns N\u2019 Roses tour", "Guns N\u2019 Roses"),
        (f"from {call('1939-1945')} 1939\u20131945.", "1939\u20131945"),
        (f"of {call('12 km')} 12\u00a0km", "12\u00a0km"),
        (f"\u0130n {call('STRASSE')} strasse", "strasse"),
    ],
)
def test_other_spelling(annotated: str, found: str) -> None:
    """Case, quotes, dashes and spaces of another kind are no difference; the span covers what the text has."""
    assert values(annotated) == [found] and locations(annotated) == [ValueLocation.OTHER_SPELLING]


@pytest.mark.parametrize("annotated", [f'film {call("Up")} "Up", he', "film [dblookup('E', 'R') -> \"Up\"] Up, he"])
def test_quotes_around_a_value(annotated: str) -> None:
    """Quotes around the value, in the text or in the call alone, are no part of it."""
    assert values(annotated) == ["Up"] and locations(annotated) == [ValueLocation.AT_ONCE]


def test_value_a_few_words_later() -> None:
    """A value after some words is found up to a limit, in its line, and as whole words only."""
    assert values(f"It was {call('1992')} established in 1992, and") == ["1992"]
    assert locations(f"It was {call('1992')} established in 1992, and") == [ValueLocation.LATER]
    near, far = ("x " * (FEW_WORDS + more) + "1992" for more in (0, 1))
    assert locations(f"a {call('1992')} {near}") == [ValueLocation.LATER]
    assert locations(f"a {call('1992')} {far}") == [ValueLocation.NOWHERE]
    assert locations(f"a {call('1992')} b.\n1992") == [ValueLocation.NOWHERE]
    assert locations(f"a {call('19')} 1992 and 219") == [ValueLocation.NOWHERE]
    assert remove_calls(f"a {call('19')} 1992 and 19.").spans == [(11, 13)]
    assert locations(f"in 1992 a {call('1992')} b") == [ValueLocation.NOWHERE], "before the call is not after it"


def test_list_in_parts() -> None:
    """A list whose parts stand in the text one after the other is marked in parts, and not at all if one is missing."""
    annotated = f"by {call('Will Smith, James Lassiter, Jay-Z')} Will Smith, his friend James Lassiter, and Jay-Z."
    assert values(annotated) == ["Will Smith", "James Lassiter", "Jay-Z"] and locations(annotated) == [
        ValueLocation.LIST
    ]
    assert values(f"he {call('rewrote, produced')} rewrote and produced it") == ["rewrote", "produced"]
    assert values(f"by {call('Ann, Bob, Eve')} Ann and Bob.") == []
    assert locations(f"by {call('Bob, Ann')} Ann and Bob.") == [ValueLocation.NOWHERE]


@pytest.mark.parametrize("value", ["yes", "June 30, 2006", "Massachusetts Institute of Technology", "", " ", "'"])
def test_value_that_is_not_there(value: str) -> None:
    """A paraphrase, and a call without a value, are counted as not placed, and the text is clean nevertheless."""
    found = remove_calls(f"It was {call(value)} at MIT on 30 June 2006.")
    assert found == ("It was at MIT on 30 June 2006.", [], {ValueLocation.NOWHERE: 1})


@pytest.mark.parametrize(
    ("annotated", "message"),
    [
        ("cut off [dblookup('E', 'R') -> Ma", "without an end"),
        ("cut off [dblookup('E', ", "without a value"),
        ("a [dblookup('E', 'R')] b", "without a value"),
        (f"a [dblookup('E', 'R') -> b and {call('c')} c", "without an end"),
        ("on <|db_start|> Napoleon <|sep|> Birth_Date <|db_retrieve|> August 15, 1769.", "without an end"),
        ("on <|db_entity|> Napoleon", "without a value"),
        ("on August 15<|db_end|> 1769", "no beginning or no end"),
        ("on <|sep|> 1769", "no beginning or no end"),
        ("on <| SEP |> 1769", "no beginning or no end"),
        ("on <|DB_Return|> 1769", "no beginning or no end"),
        ("on dbLookup ('E', 'R') -> 1769", "no beginning or no end"),
    ],
)
def test_broken_calls_are_refused(annotated: str, message: str) -> None:
    """A call whose value or end is missing, or a part of one, is an error: it must not reach the training text."""
    with pytest.raises(BrokenCallError, match=message):
        remove_calls(annotated)


def test_long_and_hostile_texts_take_no_long_time() -> None:
    """Thousands of calls, of brackets and of near misses are done in seconds."""
    started = time.monotonic()
    remove_calls(f"a {call('b')} b " * 5_000)
    remove_calls(f"a {call('[' * 50_000)} b")
    remove_calls(f"a {call('19')} " + "1992 " * 100_000)
    with pytest.raises(BrokenCallError):
        remove_calls("[dblookup(" * 20_000)
    assert time.monotonic() - started < 30
