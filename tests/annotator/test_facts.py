"""Every rule of appendix A.2.1 on hand-built words; no parser is loaded."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest

from annotator.facts import Rule, class_of_rule, fired_rules, fired_rules_of_texts
from annotator.records import Dep, Ent, FactClass, Flag, Pos, Words


def build(*rows: tuple, chunks: list[tuple[int, int]] | None = None) -> Words:
    """Words from rows (text, pos[, dep, head[, ent]]): ent is "person" or "other", with "-" to continue it.

    A text of white space is a white-space token; "|" before a text starts a sentence there.
    """
    texts, pos, dep, head, ent, ent_start, sent_start = [], [], [], [], [], [], []
    for i, row in enumerate(rows):
        text, tag = row[:2]
        label, parent, entity = (*row[2:], None, None, None)[:3]
        sent_start.append(i == 0 or text.startswith("|"))
        texts.append(text.lstrip("|"))
        pos.append(Pos[tag])
        dep.append(Dep[(label or "other").upper()])
        head.append(i if parent is None else parent)
        ent.append(Ent[(entity or "none").strip("-").upper()])
        ent_start.append(bool(entity) and not entity.startswith("-"))
    lengths = np.array([len(text) for text in texts])
    end = np.cumsum(lengths + 1) - 1
    forms = sorted({text.lower() for text in texts})
    return Words(
        start=(end - lengths).astype(np.int32),
        end=end.astype(np.int32),
        form=np.array([forms.index(text.lower()) for text in texts], dtype=np.int32),
        forms=forms,
        pos=np.array(pos, dtype=np.uint8),
        dep=np.array(dep, dtype=np.uint8),
        head=np.array(head, dtype=np.int32),
        ent=np.array(ent, dtype=np.uint8),
        ent_start=np.array(ent_start, dtype=np.bool_),
        sent_start=np.array(sent_start, dtype=np.bool_),
        flags=np.array([flags(text) for text in texts], dtype=np.uint8),
        chunks=np.array(chunks or [], dtype=np.int32).reshape(-1, 2),
    )


def flags(text: str) -> int:
    """The Flag bits of a spelling, as the parser's lexicon would set them."""
    shape = text if len(text) < 100 else ""  # spaCy's shape of a longer word is "LONG"
    has = {
        Flag.SPACE: text.isspace(),
        Flag.PUNCT: all(unicodedata.category(c).startswith("P") for c in text) and text != "%",
        Flag.ALPHA: text.isalpha(),
        Flag.CAPITAL: shape[:1].isupper(),
        Flag.LETTER: any(c.isalpha() for c in shape),
        Flag.DIGIT: any(c.isdigit() for c in shape),
        Flag.LIKE_NUM: text.isdigit() or text.lower() in ("one", "two", "ten", "first", "third"),
    }
    return sum(int(flag) for flag, value in has.items() if value)


TITLE = build(
    ("Marie", "PROPN", None, None, "person"), ("\n", "SPACE"), ("|Marie", "PROPN"), ("met", "VERB"), ("Mr", "PROPN")
)
BIRTH = build(("was", "AUX"), ("born", "VERB"), ("\n\n", "SPACE"), ("|City", "NOUN"), chunks=[(3, 4)])
TITLE_RULES, BIRTH_RULES = fired_rules(TITLE), fired_rules(BIRTH)


def rules(words: Words) -> list[str]:
    """Names of the rules that fired, one per word. They are the same among other texts, whatever stands there."""
    alone = fired_rules(words)
    before, first, _, second, after = fired_rules_of_texts([TITLE, words, Words.empty(), words, BIRTH])
    for among, expected in (first, alone), (second, alone), (before, TITLE_RULES), (after, BIRTH_RULES):
        np.testing.assert_array_equal(among, expected)
    return [Rule(code).name for code in alone]


# Step 1: named entities


def test_first_mention_of_an_entity_is_factual():
    """Every content word of a new entity is a fact, whatever its type."""
    words = build(("Paris", "PROPN", None, None, "other"), ("Hilton", "PROPN", None, None, "person"))
    assert rules(words) == ["NAMED_ENTITY", "PERSON_ENTITY"]
    assert class_of_rule(fired_rules(words)).tolist() == [FactClass.FACTUAL] * 2


def test_person_repeats_by_any_name_component():
    """A later PERSON that shares one name with an earlier one is a repetition, new names included."""
    words = build(
        ("Wolfgang", "PROPN", None, None, "person"),
        ("Mozart", "PROPN", None, None, "-person"),
        ("met", "VERB"),
        ("Constanze", "PROPN", None, None, "person"),
        ("Mozart", "PROPN", None, None, "-person"),
        (".", "PUNCT"),
        ("Constanze", "PROPN", None, None, "person"),
    )
    assert rules(words)[3:5] == ["REPEATED_PERSON", "REPEATED_PERSON"]
    assert rules(words)[6] == "REPEATED_PERSON"
    assert class_of_rule(fired_rules(words)).tolist()[3] == FactClass.OTHER


def test_name_that_doubles_a_component_is_no_repetition_of_itself():
    """Boutros Boutros-Ghali is one new person."""
    words = build(
        ("Boutros", "PROPN", None, None, "person"),
        ("Boutros", "PROPN", None, None, "-person"),
        ("Ghali", "PROPN", None, None, "-person"),
    )
    assert rules(words) == ["PERSON_ENTITY", "REPEATED_WORD", "PERSON_ENTITY"]


@pytest.mark.parametrize("shared", ["van", "J.", "Dr.", "K"])
def test_particles_initials_and_titles_are_no_name_components(shared: str):
    """Strangers share "van", initials and titles: they make no repetition."""
    words = build(
        (shared, "PROPN", None, None, "person"),
        ("Gogh", "PROPN", None, None, "-person"),
        ("and", "CCONJ"),
        (shared, "PROPN", None, None, "person"),
        ("Beethoven", "PROPN", None, None, "-person"),
    )
    assert rules(words)[3:] == ["REPEATED_WORD", "PERSON_ENTITY"]


def test_other_entities_repeat_only_as_a_whole():
    """New York City after New York is new where its word is new; New York again is a repetition."""
    words = build(
        ("New", "PROPN", None, None, "other"),
        ("York", "PROPN", None, None, "-other"),
        (",", "PUNCT"),
        ("New", "PROPN", None, None, "other"),
        ("York", "PROPN", None, None, "-other"),
        ("City", "PROPN", None, None, "-other"),
        (",", "PUNCT"),
        ("New", "PROPN", None, None, "other"),
        ("York", "PROPN", None, None, "-other"),
    )
    fired = rules(words)
    assert fired[3:6] == ["REPEATED_WORD", "REPEATED_WORD", "NAMED_ENTITY"]
    assert fired[7:] == ["REPEATED_ENTITY", "REPEATED_ENTITY"]


def test_same_entity_is_recognised_with_another_article():
    """Entities that differ in function words only are the same: content words are compared."""
    words = build(
        ("Vitamin", "NOUN", None, None, "other"),
        ("B", "DET", None, None, "-other"),
        (",", "PUNCT"),
        ("the", "DET", None, None, "other"),
        ("Vitamin", "NOUN", None, None, "-other"),
    )
    assert rules(words)[4] == "REPEATED_ENTITY"


def test_neighbouring_entities_are_two():
    """An entity that begins right after another one is compared on its own."""
    words = build(
        ("Ann", "PROPN", None, None, "person"),
        ("Ann", "PROPN", None, None, "person"),
        ("Lee", "PROPN", None, None, "-person"),
    )
    assert rules(words) == ["PERSON_ENTITY", "REPEATED_PERSON", "REPEATED_PERSON"]


def test_entity_is_split_at_white_space():
    """A name that runs from the title line into the body is two mentions, the second repeated."""
    words = build(
        ("Ralph", "PROPN", None, None, "person"),
        ("\n\n", "SPACE", None, None, "-person"),
        ("Ralph", "PROPN", None, None, "-person"),
        ("Earl", "PROPN", None, None, "-person"),
    )
    assert rules(words) == ["PERSON_ENTITY", "WHITE_SPACE", "REPEATED_PERSON", "REPEATED_PERSON"]


def test_function_words_inside_an_entity_stay_grammatical():
    """The preposition of a name, the article of a band and the comma of a date are no facts."""
    words = build(
        ("The", "DET", None, None, "other"),
        ("University", "PROPN", None, None, "-other"),
        ("of", "ADP", None, None, "-other"),
        ("Oxford", "PROPN", None, None, "-other"),
        ("August", "PROPN", None, None, "other"),
        ("15", "NUM", None, None, "-other"),
        (",", "PUNCT", None, None, "-other"),
        ("1769", "NUM", None, None, "-other"),
    )
    grammatical, fact = FactClass.GRAMMATICAL, FactClass.FACTUAL
    assert class_of_rule(fired_rules(words)).tolist() == [
        *(grammatical, fact, grammatical, fact),
        *(fact, fact, grammatical, fact),
    ]


@pytest.mark.parametrize(
    ("text", "modifiers"),
    [
        ("about € 310 million", "about"),
        ("nearly two years", "nearly"),
        ("at least a dozen", "least"),
        ("just over half", "just over"),
        ("More than 50", "More"),
        ("c. 1850", "c."),
        ("As many as 50", "As many as"),
    ],
)
@pytest.mark.parametrize("pos", ["ADV", "ADJ", "PROPN", "NOUN"])
def test_modifiers_of_an_amount_are_no_facts(text: str, modifiers: str, pos: str):
    """What only makes an amount more or less exact carries no information, however it is tagged; the amount does."""
    tags = {"at": "ADP", "than": "ADP", "a": "DET", "€": "SYM", "310": "NUM", "50": "NUM", "1850": "NUM", "two": "NUM"}
    tags |= dict.fromkeys(("million", "dozen", "years", "half"), "NOUN") | dict.fromkeys(modifiers.split(), pos)
    rows = [(("|" if n == 0 else "") + word, tags[word]) for n, word in enumerate(text.split())]
    words = build(*[(*row, "dobj", 0, "-other" if n else "other") for n, row in enumerate(rows)])
    fired = dict(zip(text.split(), rules(words), strict=True))
    assert {word for word, rule in fired.items() if rule == "NO_RULE"} == {*modifiers.split(), *({"€"} & {*fired})}
    assert "NAMED_ENTITY" in fired.values()


def test_modifiers_are_parts_of_names():
    """In names with capitals inside a sentence ("Over the Hedge"), after an amount, and in persons they are content."""
    name = build(("saw", "VERB"), ("Over", "ADV", None, None, "other"), ("Hedge", "PROPN", None, None, "-other"))
    assert rules(name)[1:] == ["NAMED_ENTITY"] * 2
    later = build(("50", "NUM", None, None, "other"), ("only", "ADV", None, None, "-other"))
    assert rules(later) == ["NAMED_ENTITY"] * 2
    person = build(("just", "PROPN", None, None, "person"), ("Ann", "PROPN", None, None, "-person"))
    assert rules(person) == ["PERSON_ENTITY"] * 2
    answer = build(
        ("Answer", "NOUN"), (":", "PUNCT"), ("Roughly", "ADV", None, None, "other"), ("2", "NUM", None, None, "-other")
    )
    assert rules(answer)[2:] == ["NO_RULE", "NAMED_ENTITY"]
    place = build(("Glendale", "PROPN"), (",", "PUNCT"), ("CA", "PROPN", None, None, "other"))
    assert rules(place)[2] == "NAMED_ENTITY"
    apart = build(("about", "ADV", None, None, "other"), ("1890", "NUM", None, None, "other"))
    assert rules(apart) == ["NO_RULE", "NAMED_ENTITY"]


def test_a_modifier_uses_up_its_mention():
    """The "c." of "c. 1850" is no name at its second place, where the parser sees no entity."""
    words = build(("c.", "ADV", None, None, "other"), ("1850", "NUM", None, None, "-other"), ("c.", "PROPN"))
    assert rules(words)[2] == "REPEATED_WORD"


# Words without a letter or a digit


@pytest.mark.parametrize("text", ["=", "©", "€", "$", "😀", "👩\u200d👧", "→", "°", "\ufffd", "=" * 100])
@pytest.mark.parametrize("pos", ["NOUN", "PROPN", "NUM", "SYM", "X", "ADJ"])
def test_words_without_a_letter_or_digit_are_no_facts(text: str, pos: str):
    """Signs, currency signs and emoji are no facts in an entity, as an object, or as a name."""
    assert rules(build((text, pos, None, None, "other"))) == ["NO_RULE"]
    assert rules(build((text, pos, None, None, "person"))) == ["NO_RULE"]
    assert rules(build(("saw", "VERB"), (text, pos, "dobj", 0), chunks=[(1, 2)]))[1] == "NO_RULE"
    assert class_of_rule(fired_rules(build((text, pos)))).tolist() == [FactClass.OTHER]


@pytest.mark.parametrize("text", ["½", "Ⅳ", "中", "ß", "x" * 100, "7" * 100])
def test_letters_and_digits_of_every_kind_count(text: str):
    """Fractions, Roman numerals, other scripts, and words of 100 characters, of which spaCy's shapes tell nothing."""
    assert rules(build((text, "NOUN", None, None, "other"))) == ["NAMED_ENTITY"]
    assert rules(build((text, "PUNCT"))) != ["PUNCTUATION"]


def test_a_sign_does_not_use_up_a_mention():
    """The emoji of two sentences have one form, and the names beside them are first mentions all the same."""
    rows = [("😀", "NOUN", None, None, "other"), ("Ann", "PROPN", None, None, "person")]
    assert rules(build(*rows, *rows)) == ["NO_RULE", "PERSON_ENTITY", "NO_RULE", "REPEATED_PERSON"]


# First occurrence, word by word


def test_word_seen_in_any_role_is_no_fact_again():
    """A year or noun that the document already has is not factual inside a new entity or role."""
    words = build(
        ("painters", "NOUN", "pobj", 0),
        ("of", "ADP"),
        ("1774", "NUM"),
        ("autumn", "NOUN", None, None, "other"),
        ("1774", "NUM", None, None, "-other"),
        ("painters", "NOUN", "dobj", 5),
        chunks=[(0, 1), (5, 6)],
    )
    assert rules(words)[2:] == ["NUMBER", "NAMED_ENTITY", "REPEATED_WORD", "REPEATED_WORD"]


def test_pronouns_and_particles_are_no_content_of_an_entity():
    """In "its first year", tagged a date, the pronoun is no fact, nor is "not" in "not until 1998"."""
    words = build(("what", "PRON", None, None, "other"), ("not", "PART", None, None, "-other"), ("it", "PRON", "nsubj"))
    assert rules(words) == ["NO_RULE"] * 3


def test_words_repeat_whatever_their_case():
    """MOZART after Mozart is a repetition."""
    words = build(("Mozart", "PROPN"), ("MOZART", "PROPN"))
    assert rules(words) == ["PROPER_NOUN", "REPEATED_WORD"]


def test_common_word_does_not_use_up_a_name():
    """After "new ideas" New Zealand is new, in or out of an entity; the next proper "New" is repeated."""
    for entity in ("other", None):
        words = build(
            ("new", "ADJ"),
            ("ideas", "NOUN"),
            ("New", "PROPN", None, None, entity),
            ("Zealand", "PROPN", None, None, entity and "-other"),
            ("in", "ADP"),
            ("New", "PROPN", None, None, entity),
            ("York", "PROPN", None, None, entity and "-other"),
        )
        fact = "NAMED_ENTITY" if entity else "PROPER_NOUN"
        assert rules(words)[2:] == [fact, fact, "PREPOSITION", "REPEATED_WORD", fact]


def test_word_of_an_entity_uses_up_a_proper_noun():
    """After the entity "Bank Street", whatever its tags, the proper noun "Bank" is repeated."""
    words = build(
        ("Bank", "NOUN", None, None, "other"),
        ("Street", "NOUN", None, None, "-other"),
        ("near", "ADP"),
        ("Bank", "PROPN"),
    )
    assert rules(words)[3] == "REPEATED_WORD"


def test_name_uses_up_a_common_word():
    """After Reading, the town, "reading" as an object is no first mention."""
    words = build(("Reading", "PROPN"), ("likes", "VERB"), ("reading", "NOUN", "dobj", 1), chunks=[(0, 1), (2, 3)])
    assert rules(words)[2] == "REPEATED_WORD"


def test_function_word_does_not_use_up_a_name():
    """The auxiliary "may" leaves the month May a first mention."""
    words = build(("It", "PRON"), ("may", "AUX"), ("rain", "VERB"), ("May", "PROPN", None, None, "other"))
    assert rules(words) == ["NO_RULE", "AUXILIARY", "NO_RULE", "NAMED_ENTITY"]


# Step 2: noun chunks


@pytest.mark.parametrize("role", ["nsubj", "nsubjpass", "appos"])
def test_subject_or_appositive_with_a_name_like_head_is_likely_a_person(role: str):
    """Marie Curie discovered radium; the physicist, Marie Curie."""
    words = build(("today", "NOUN"), ("Marie", "PROPN"), ("Curie", "NOUN", role, 3), ("won", "VERB"), chunks=[(1, 3)])
    assert rules(words) == ["NO_RULE", "LIKELY_PERSON", "LIKELY_PERSON", "NO_RULE"]


def test_conjunct_of_a_subject_is_likely_a_person():
    """In "Marie and Pierre won", Pierre has the role of Marie."""
    rows = (("Marie", "NOUN", "nsubj", 3), ("and", "CCONJ"))
    words = build(("|now", "ADV"), *rows, ("Pierre", "NOUN", "conj", 1), chunks=[(1, 2), (3, 4)])
    assert rules(words)[1::2] == ["LIKELY_PERSON", "LIKELY_PERSON"]


def test_name_that_is_not_the_head_makes_no_person():
    """In "Curie methods won", the name before a lower-case head is a proper noun, not a person."""
    words = build(("Curie", "PROPN"), ("methods", "NOUN", "nsubj", 2), ("won", "VERB"), chunks=[(0, 2)])
    assert rules(words) == ["PROPER_NOUN", "NO_RULE", "NO_RULE"]


def test_capital_of_a_sentence_start_is_not_name_like():
    """In "Critics praised it" the capital says nothing, also after a quote or a line break."""
    for opening in (("\n", "SPACE"), ('|"', "PUNCT")):
        words = build(("it", "PRON"), opening, ("Critics", "NOUN", "nsubj", 3), ("won", "VERB"), chunks=[(2, 3)])
        assert rules(words)[2] == "NO_RULE"


def test_common_subject_is_no_fact():
    """In "The physicist won", the lower-case subject has no factual role."""
    words = build(("the", "DET"), ("physicist", "NOUN", "nsubj", 2), ("won", "VERB"), chunks=[(0, 2)])
    assert rules(words) == ["DETERMINER", "NO_RULE", "NO_RULE"]


def test_following_life_event_makes_a_person():
    """In "Curie was born" the verb makes a person of a name, at the sentence start of a proper noun alone."""
    words = build(("Curie", "PROPN"), ("was", "AUX"), ("born", "VERB"), chunks=[(0, 1)])
    assert rules(words) == ["LIKELY_PERSON", "AUXILIARY", "NO_RULE"]
    inner = build(("when", "ADV"), ("Curie", "NOUN"), ("was", "AUX"), ("born", "VERB"), chunks=[(1, 2)])
    assert rules(inner)[1] == "LIKELY_PERSON"
    far = build(("when", "ADV"), ("Curie", "NOUN"), ("saw", "VERB"), ("born", "VERB"), chunks=[(1, 2)])
    assert rules(far)[1] == "NO_RULE"


@pytest.mark.parametrize(
    ("noun", "verb"), [("Treasure", "buried"), ("Funds", "raised"), ("Students", "graduated"), ("Women", "married")]
)
@pytest.mark.parametrize("opening", ["|", "\n"])
def test_common_noun_that_opens_a_sentence_is_no_person(noun: str, verb: str, opening: str):
    """In "Treasure buried there" the capital is that of the sentence or line, whatever verb follows."""
    start = [("it", "PRON"), ("\n", "SPACE"), (noun, "NOUN")] if opening == "\n" else [("|" + noun, "NOUN")]
    words = build(*start, (verb, "VERB"), chunks=[(len(start) - 1, len(start))])
    assert rules(words)[-2:] == ["NO_RULE", "NO_RULE"]


def test_preceding_title_makes_a_person():
    """In "Professor Curie" the title makes a person, inside the chunk or right before it."""
    inside = build(("|Professor", "NOUN"), ("Curie", "NOUN"), chunks=[(0, 2)])
    assert rules(inside)[1] == "LIKELY_PERSON"
    before = build(("professor", "NOUN"), ("Curie", "X"), chunks=[(1, 2)])
    assert rules(before)[1] == "LIKELY_PERSON"
    without = build(("lazy", "NOUN"), ("Curie", "X"), chunks=[(1, 2)])
    assert rules(without)[1] == "NO_RULE"


def test_keyword_makes_an_organisation():
    """The nouns of "the old city council" are facts in any role; its adjective and article are not."""
    words = build(("the", "DET"), ("old", "ADJ"), ("city", "NOUN"), ("council", "NOUN", "pobj", 0), chunks=[(0, 4)])
    assert rules(words) == ["DETERMINER", "NO_RULE", "LIKELY_ORGANISATION", "LIKELY_ORGANISATION"]


def test_nouns_after_the_keyword_are_no_organisation():
    """In "the city council members", the members are not the council, nor is the next chunk."""
    words = build(
        ("the", "DET"),
        ("city", "NOUN"),
        ("council", "NOUN"),
        ("members", "NOUN", "pobj", 0),
        ("left", "VERB"),
        ("towns", "NOUN", "pobj", 0),
        ("school", "NOUN", "pobj", 0),
        chunks=[(0, 4), (5, 6), (6, 7)],
    )
    assert [Rule[name] == Rule.LIKELY_ORGANISATION for name in rules(words)] == [0, 1, 1, 0, 0, 0, 1]


def test_definite_article_before_a_name_makes_an_organisation():
    """Of "the Yellow line" the name-like word is a fact; after "a" it is not, nor in lower case."""
    rest = ("line", "NOUN", "pobj", 0)
    assert rules(build(("the", "DET"), ("Yellow", "ADJ"), rest, chunks=[(0, 3)])) == [
        "DETERMINER",
        "LIKELY_ORGANISATION",
        "NO_RULE",
    ]
    assert rules(build(("a", "DET"), ("Yellow", "ADJ"), rest, chunks=[(0, 3)]))[1] == "NO_RULE"
    assert rules(build(("the", "DET"), ("yellow", "ADJ"), rest, chunks=[(0, 3)]))[1] == "NO_RULE"


def test_proper_noun_is_a_fact_in_and_out_of_chunks():
    """Mount Everest, wherever it stands."""
    words = build(("Mount", "PROPN"), ("Everest", "PROPN", "pobj", 0), chunks=[(0, 2)])
    assert rules(words) == ["PROPER_NOUN", "PROPER_NOUN"]
    assert rules(build(("Everest", "PROPN"))) == ["PROPER_NOUN"]


@pytest.mark.parametrize(
    ("before", "word", "after", "rule"),
    [
        ("\n", "Biography", ".", "NO_RULE"),
        ("\n", "Dose", ":", "NO_RULE"),
        (".", "|Suppose", "that", "NO_RULE"),
        ("", "Megataphrus", "\n", "PROPER_NOUN"),
        ("near", "Kursk", ".", "PROPER_NOUN"),
    ],
)
def test_capital_that_opens_a_line_makes_no_proper_noun(before: str, word: str, after: str, rule: str):
    """A heading or a sentence's first word is no name because of its tag alone, but for the title of the document."""
    others = {"\n": "SPACE", ".": "PUNCT", ":": "PUNCT", "near": "ADP", "that": "PRON"}
    rows = [("it", "PRON"), ("\n", "SPACE"), ("so", "ADV"), (before, others[before])] if before else []
    words = build(*rows, (word, "PROPN"), (after, others[after]), chunks=[(len(rows), len(rows) + 1)])
    assert rules(words)[len(rows)] == rule


def test_names_that_open_a_line_are_names():
    """With another name in its chunk, in an entity, or as a subject, a line's first word is a name."""
    start = [("it", "PRON"), ("\n", "SPACE")]
    mount = build(*start, ("Mount", "PROPN"), ("Everest", "PROPN"), chunks=[(2, 4)])
    assert rules(mount)[2:] == ["PROPER_NOUN"] * 2
    assert rules(build(*start, ("Rome", "PROPN", None, None, "other")))[2] == "NAMED_ENTITY"
    kant = build(*start, ("Kant", "PROPN", "nsubj", 3), ("wrote", "VERB"), chunks=[(2, 3)])
    assert rules(kant)[2] == "LIKELY_PERSON"
    heading = build(
        *start, ("Kursk", "PROPN", "nsubj", 5), (".", "PUNCT"), ("\n", "SPACE"), ("won", "VERB"), chunks=[(2, 3)]
    )
    assert rules(heading)[2] == "NO_RULE"


@pytest.mark.parametrize(
    ("stop", "line_break", "rule"),
    [
        (".", "\n", "NO_RULE"),
        (":", "\n", "NO_RULE"),
        ("now", "\n\n", "NO_RULE"),
        ("a", "\n", "COMMON_NOUN"),
        (".", "  ", "COMMON_NOUN"),
    ],
)
@pytest.mark.parametrize("role", ["attr", "dobj", "appos"])
def test_role_ends_with_the_paragraph(stop: str, line_break: str, rule: str, role: str):
    """A heading is no object of the sentence before it, and an item of a list is none of its introduction. In prose
    with hard line breaks, and after two spaces, a role is one."""
    tag = "PUNCT" if stop in ".:" else "DET"
    rows = (
        ("won", "VERB"),
        (stop, tag),
        (line_break, "SPACE"),
        ("history", "NOUN", role, 0),
        ("drama", "NOUN", "conj", 3),
    )
    title = (("Ada", "PROPN"), ("\n\n", "SPACE"))
    words = build(*title, *[(*row[:3], 2 + row[3]) if len(row) > 3 else row for row in rows], chunks=[(5, 6), (6, 7)])
    assert rules(words)[5:] == [rule, rule]


def test_the_title_belongs_to_the_first_paragraph():
    """The parser may take the title for the subject: its appositive in the text is one."""
    words = build(("Mithraeum", "PROPN"), ("\n\n", "SPACE"), ("sanctuary", "NOUN", "appos", 0), chunks=[(2, 3)])
    assert rules(words)[2] == "COMMON_NOUN"


def test_a_heading_does_not_use_up_a_name():
    """After the heading "Reading", the town is a first mention; the common word is not."""
    heading = [("it", "PRON"), ("\n", "SPACE"), ("Reading", "PROPN"), ("\n", "SPACE"), ("in", "ADP")]
    assert rules(build(*heading, ("Reading", "PROPN")))[2::3] == ["NO_RULE", "PROPER_NOUN"]
    assert rules(build(*heading, ("reading", "NOUN", "dobj", 5), chunks=[(5, 6)]))[5] == "REPEATED_WORD"


@pytest.mark.parametrize("role", ["attr", "oprd", "dobj", "appos"])
def test_common_noun_in_a_factual_role(role: str):
    """Attribute, object predicate, direct object and appositive: nouns are facts, adjectives are not."""
    words = build(("was", "AUX"), ("great", "ADJ"), ("portrait", "NOUN"), ("painter", "NOUN", role, 0), chunks=[(1, 4)])
    assert rules(words)[1:] == ["NO_RULE", "COMMON_NOUN", "COMMON_NOUN"]


def test_conjunct_has_the_role_of_its_first():
    """Of "a lawyer, politician, poet, ..." each hangs on the one before: all are attributes, or none is."""
    rows = [(word, "NOUN", "conj", i) for i, word in enumerate(("politician", "poet", "farmer", "actor", "spy"))]
    chunks = [(i, i + 1) for i in range(6)]
    assert rules(build(("lawyer", "NOUN", "attr", 0), *rows, chunks=chunks)) == ["COMMON_NOUN"] * 6
    assert rules(build(("lawyer", "NOUN", "nsubj", 0), *rows, chunks=chunks)) == ["NO_RULE"] * 6


def test_object_of_a_preposition_is_no_fact():
    """In "a lawyer by training", the object of the preposition has no factual role."""
    words = build(
        ("lawyer", "NOUN", "attr", 0),
        ("by", "ADP", "prep", 0),
        ("training", "NOUN", "pobj", 1),
        chunks=[(0, 1), (2, 3)],
    )
    assert rules(words) == ["COMMON_NOUN", "PREPOSITION", "NO_RULE"]


@pytest.mark.parametrize(
    ("preposition", "role", "rule"),
    [("by", "prep", "NO_RULE"), ("with", "prep", "COMMON_NOUN"), ("by", "other", "COMMON_NOUN")],
)
def test_appositive_under_a_manner_preposition_is_no_fact(preposition: str, role: str, rule: str):
    """As "by trade, a dying one" says how; "with his brother, a painter" and the "by" of an agent say who."""
    words = build(
        (preposition, "ADP", role, 0),
        ("trade", "NOUN", "pobj", 0),
        (",", "PUNCT"),
        ("craft", "NOUN", "appos", 1),
        chunks=[(1, 2), (3, 4)],
    )
    assert rules(words)[3] == rule


def test_chunk_is_split_at_white_space():
    """Of a chunk across lines, only the part with the role's head takes the role."""
    words = build(
        ("early", "ADJ"),
        ("life", "NOUN"),
        ("\n", "SPACE"),
        ("portrait", "NOUN"),
        ("painter", "NOUN", "attr", 0),
        chunks=[(0, 5)],
    )
    assert rules(words) == ["NO_RULE", "NO_RULE", "WHITE_SPACE", "COMMON_NOUN", "COMMON_NOUN"]


@pytest.mark.parametrize(
    ("text", "pos", "rule"),
    [
        ("1987", "NUM", "NUMBER"),
        ("1990s", "NOUN", "NUMBER"),
        ("X260", "ADV", "NUMBER"),
        ("1973–76", "ADP", "NUMBER"),
        ("third", "ADJ", "NUMBER"),
        ("dozen", "NUM", "NUMBER"),
        ("one", "PRON", "NO_RULE"),
        ("first", "ADV", "NO_RULE"),
    ],
)
def test_numeric_words(text: str, pos: str, rule: str):
    """The first occurrence of a number is a fact anywhere, in digits or words, as one word."""
    assert rules(build((text, pos), (text, pos))) == [rule, "REPEATED_WORD" if rule == "NUMBER" else rule]


def test_new_number_in_a_repeated_name_is_a_fact():
    """Numbers are facts until they have been mentioned themselves."""
    words = build(
        ("Apollo", "PROPN", None, None, "person"),
        (",", "PUNCT"),
        ("Apollo", "PROPN", None, None, "person"),
        ("13", "NUM", None, None, "-person"),
    )
    assert rules(words)[2:] == ["REPEATED_PERSON", "PERSON_ENTITY"]


# Steps 3 and 4


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (("each", "DET"), "DETERMINER"),
        (("my", "PRON", "poss"), "DETERMINER"),
        (("until", "ADP"), "PREPOSITION"),
        (("and", "CCONJ"), "CONJUNCTION"),
        (("unless", "SCONJ"), "CONJUNCTION"),
        (("might", "AUX"), "AUXILIARY"),
        (("to", "PART", "aux"), "PARTICLE"),
        (("'s", "PART", "case"), "PARTICLE"),
        (("-", "PUNCT"), "PUNCTUATION"),
        (("–", "ADP"), "PUNCTUATION"),
        (("he", "PRON", "nsubj"), "NO_RULE"),
        (("not", "PART"), "NO_RULE"),
        (("quickly", "ADV"), "NO_RULE"),
        (("\n", "SPACE"), "WHITE_SPACE"),
    ],
)
def test_grammatical_and_other_words(row: tuple, rule: str):
    """Determiners, prepositions, conjunctions, auxiliaries, particles and punctuation; the rest is other."""
    words = build(row)
    assert rules(words) == [rule]
    expected = FactClass.OTHER if rule in ("NO_RULE", "WHITE_SPACE") else FactClass.GRAMMATICAL
    assert class_of_rule(fired_rules(words)).tolist() == [expected]


def test_text_without_words():
    """No words, no rules."""
    assert fired_rules(Words.empty()).tolist() == []
    assert fired_rules_of_texts([]) == []
