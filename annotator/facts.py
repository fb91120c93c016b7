"""Words -> FactClass per word, with the rule that decided: the rules of appendix A.2.1 on arrays.

The first of these that applies to a word decides on it:

1. White space is OTHER, and so is a word without a letter or a digit ("=", "©", "€", an emoji), but for punctuation.
2. Function words are GRAMMATICAL wherever they stand, also inside a name or a date ("University of Oxford",
   "August 15, 1769"), because they carry no information.
3. Words of a named entity or of an informative noun chunk are FACTUAL where the document mentions them for the first
   time, else OTHER (repeated). The title line is part of the document, so that it mentions, too.
4. All other words are OTHER.

"Step 1" to "Step 3" below are the steps of the paper: named entities, noun chunks and numbers, function words.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotator.cues import LEXICON, Cue
from annotator.records import Dep, Ent, FactClass, Flag, Pos, Words

# Part of the fingerprint, by which label caches tell annotators apart: raise it with every change that moves a label,
# here or in words.py or align.py.
RULES_VERSION = 3


class Rule(enum.IntEnum):
    """The rule that decided on a word. Of two factual rules the one that comes first here has precedence."""

    NO_RULE = 0
    WHITE_SPACE = 1
    # Grammatical
    DETERMINER = 2
    PREPOSITION = 3
    CONJUNCTION = 4
    AUXILIARY = 5
    PARTICLE = 6
    PUNCTUATION = 7
    # Factual
    PERSON_ENTITY = 8
    NAMED_ENTITY = 9
    LIKELY_PERSON = 10
    LIKELY_ORGANISATION = 11
    PROPER_NOUN = 12
    COMMON_NOUN = 13
    NUMBER = 14
    # Informative, but mentioned before
    REPEATED_PERSON = 15
    REPEATED_ENTITY = 16
    REPEATED_WORD = 17


_CLASS_OF_RULE = np.full(len(Rule), FactClass.OTHER, dtype=np.uint8)
_CLASS_OF_RULE[Rule.DETERMINER : Rule.PUNCTUATION + 1] = FactClass.GRAMMATICAL
_CLASS_OF_RULE[Rule.PERSON_ENTITY : Rule.NUMBER + 1] = FactClass.FACTUAL

Bools = NDArray[np.bool_]
Codes = NDArray[np.uint8]
Indices = NDArray[np.int64]


def _table(members: Iterable[int]) -> Bools:
    """A table of which small codes are members. ``table[codes]`` is far faster than ``np.isin``."""
    table = np.zeros(32, dtype=np.bool_)
    table[list(members)] = True
    return table


_GRAMMATICAL_POS = np.zeros(len(Pos), dtype=np.uint8)
_GRAMMATICAL_POS[Pos.DET] = Rule.DETERMINER
_GRAMMATICAL_POS[Pos.ADP] = Rule.PREPOSITION
_GRAMMATICAL_POS[[Pos.CCONJ, Pos.SCONJ]] = Rule.CONJUNCTION
_GRAMMATICAL_POS[Pos.AUX] = Rule.AUXILIARY

_NO_CONTENT = _table((Pos.PRON, Pos.PART))
_NOUN = _table((Pos.NOUN, Pos.PROPN))
_NAME = _table((Pos.NOUN, Pos.PROPN, Pos.ADJ, Pos.X))
_SPELLED_NUMBER = _table((Pos.NUM, Pos.ADJ, Pos.NOUN))
_DETERMINER_ROLE = _table((Dep.POSS, Dep.DET, Dep.PREDET))
_PARTICLE_ROLE = _table((Dep.AUX, Dep.CASE))
_PERSON_ROLE = _table((Dep.NSUBJ, Dep.NSUBJPASS, Dep.APPOS))
_FACTUAL_ROLE = _table((Dep.ATTR, Dep.OPRD, Dep.DOBJ, Dep.APPOS))
_SKIPPED_BEFORE_CUE = _table((Pos.AUX, Pos.ADV, Pos.PUNCT))
_NAMING = _table((*range(Rule.PERSON_ENTITY, Rule.COMMON_NOUN),))
_NO_COMPONENT = Cue.TITLE | Cue.NAME_PARTICLE
_LETTER_OR_DIGIT = Flag.LETTER | Flag.DIGIT

# A cue verb may follow a chunk after this many auxiliaries, adverbs and punctuation marks: "(was born".
_CUE_REACH = 3


# NumPy takes up to ten times as long to compare with an enum as with a plain int, which matters on short documents.


def _is(codes: Codes, code: int) -> Bools:
    """Compare codes with one code; bool, same shape."""
    return codes == int(code)


def _has(codes: Codes, bits: int) -> Bools:
    """Find the codes that have at least one of these bits; bool, same shape."""
    return (codes & int(bits)) != 0


def _append(values: NDArray[Any], last: int) -> NDArray[Any]:
    """[n] -> [n + 1]: the values, then ``last``. As an index, n or -1 then stands for "no word" and gives ``last``."""
    longer = np.empty(len(values) + 1, dtype=values.dtype)
    longer[:-1] = values
    longer[-1] = last
    return longer


def _of_word_before(values: NDArray[Any], first: int) -> NDArray[Any]:
    """[n] -> [n]: each word gets the value of the word before it, and the first word gets ``first``."""
    shifted = np.empty_like(values)
    shifted[:1] = first
    shifted[1:] = values[:-1]
    return shifted


def class_of_rule(rules: Codes) -> Codes:
    """``Rule`` values -> ``FactClass`` values, same shape."""
    return _CLASS_OF_RULE[rules]


def fired_rules(words: Words) -> Codes:
    """The ``Rule`` that decides on each word of a text; uint8 [n].

    The paper says "first occurrence" of entities. Here it is also said of words: a content word that the document has
    already had, in whatever role, is not factual again (see ``first_mentions``).
    """
    return fired_rules_of_texts([words])[0]


def fired_rules_of_texts(texts: list[Words]) -> list[Codes]:
    """``fired_rules`` of each text, in one pass: a pass takes 0.4 ms, however few words there are."""
    if not texts:
        return []
    words, first = _one_after_the_other(texts)
    rules = _fired_rules(words, title_words(words, first))
    return [rules[start : start + len(text)] for start, text in zip(first.tolist(), texts, strict=True)]


def _one_after_the_other(texts: list[Words]) -> tuple[Words, Indices]:
    """Texts as if they were one, in which the rules see each of them alone. Also their first words; int64 [texts].

    White space parts each text from the next, so that no rule looks over its end, and no two texts share a form.
    """
    first = np.cumsum([0] + [len(words) + 1 for words in texts])[:-1]
    first_form = np.cumsum([0] + [len(words.forms) + 1 for words in texts])[:-1]
    column = {
        name: np.concatenate([part for words in texts for part in (getattr(words, name), _SEPARATOR[name])])
        for name in ("start", "end", "pos", "dep", "ent", "ent_start", "sent_start", "flags")
    }
    # The separator is its own head, and has the last form of its text.
    form, head, chunks = [], [], []
    for words, start, start_form in zip(texts, first.tolist(), first_form.tolist(), strict=True):
        form += [words.form + start_form, [len(words.forms) + start_form]]
        head += [words.head + start, [len(words) + start]]
        chunks.append(words.chunks + start)
    joined = Words(
        form=np.concatenate(form),
        forms=[spelling for words in texts for spelling in (*words.forms, " ")],
        head=np.concatenate(head),
        chunks=np.concatenate(chunks),
        **column,
    )
    return joined, first


_SEPARATOR = {
    "start": np.zeros(1, dtype=np.int32),
    "end": np.zeros(1, dtype=np.int32),
    "pos": np.array([Pos.SPACE], dtype=np.uint8),
    "dep": np.array([Dep.OTHER], dtype=np.uint8),
    "ent": np.array([Ent.NONE], dtype=np.uint8),
    "ent_start": np.zeros(1, dtype=np.bool_),
    "sent_start": np.zeros(1, dtype=np.bool_),
    "flags": np.array([Flag.SPACE], dtype=np.uint8),
}


def title_words(words: Words, first: Indices) -> Bools:
    """The words of each text's title, which ends with its first white space; bool [n].

    Args:
        words: of texts that follow one another, none of them empty.
        first: int64 [texts], the first word of each.
    """
    space = _has(words.flags, Flag.SPACE)
    count = np.cumsum(space) - space  # white space before each word
    return count == np.repeat(count[first], np.diff(first, append=len(space)))


def _fired_rules(words: Words, title: Bools) -> Codes:
    """See ``fired_rules``. No step but that of the title knows where a text begins."""
    letters = lettered(words)
    grammatical = grammatical_rules(words, letters)
    space = _has(words.flags, Flag.SPACE)
    content = _is(grammatical, Rule.NO_RULE) & ~space & ~_NO_CONTENT[words.pos] & letters
    cues = np.array([LEXICON.get(form, 0) for form in words.forms], dtype=np.uint8)[words.form]
    entities = entity_runs(words)
    informative = content & ~modifiers(words, entities, content, cues)

    # Each line overrides those before it.
    rules = np.where(informative, chunk_rules(words, title, informative, cues), grammatical)
    entity, repeated = entity_rules(words, entities, informative, cues)
    rules = np.where(entity, entity, rules)
    proper = _is(words.pos, Pos.PROPN) & _NAMING[rules]
    rules[informative & ~_is(rules, Rule.NO_RULE) & ~first_mentions(words, content, proper)] = Rule.REPEATED_WORD
    rules = np.where(repeated, repeated, rules)
    rules[space] = Rule.WHITE_SPACE
    return rules


def grammatical_rules(words: Words, letters: Bools) -> Codes:
    """Step 3: the grammatical rule of each function word, NO_RULE for the others; uint8 [n].

    Determiners include possessives ("my"), as in the paper's list. A particle is the infinitive's "to" or the
    possessive "'s", which the parser labels as an auxiliary and a case marker; "not" is neither. A word with a digit
    ("1973–76") is never grammatical, whatever its tag.
    """
    rules = _GRAMMATICAL_POS[words.pos]
    rules[_is(words.pos, Pos.PRON) & _DETERMINER_ROLE[words.dep]] = Rule.DETERMINER
    rules[_is(words.pos, Pos.PART) & _PARTICLE_ROLE[words.dep]] = Rule.PARTICLE
    rules[_has(words.flags, Flag.DIGIT)] = Rule.NO_RULE
    # The tag PUNCT alone is not believed of a word with letters or digits.
    rules[_has(words.flags, Flag.PUNCT) | (_is(words.pos, Pos.PUNCT) & ~letters)] = Rule.PUNCTUATION
    return rules


def lettered(words: Words) -> Bools:
    """The words that have a letter or a digit of any script; bool [n]. "½" has one; "=", "©" and emoji have none."""
    found = _has(words.flags, _LETTER_OR_DIGIT)
    # The flags come from spaCy's shapes, which say nothing of a word of 100 characters, or of numerals such as "½".
    others = np.zeros(len(words.forms), dtype=np.bool_)
    unsure = np.unique(words.form[~found]).tolist()
    others[[form for form in unsure if any(map(str.isalnum, words.forms[form]))]] = True
    return found | others[words.form]


def first_mentions(words: Words, content: Bools, proper: Bools) -> Bools:
    """The words that are the first of their form among the content words of the document; bool [n].

    Args:
        words: the words.
        content: bool [n], the content words.
        proper: bool [n], those of them that are proper nouns.

    Only content words count, so that the month "May" is a first mention after the auxiliary "may". A name and a common
    word of the same letters are two words: a proper noun is repeated only if a proper noun or a word of a named entity
    had its form before. So New Zealand is a first mention after "new ideas".
    """
    form = words.form
    named = proper | (content & ~_is(words.ent, Ent.NONE))
    first = np.where(proper, _first_index(form, named)[form], _first_index(form, content)[form])
    return first == np.arange(len(form))


def _first_index(form: NDArray[np.int32], mask: Bools) -> Indices:
    """The index of the first word in the mask for each form, n for none; int64 [forms]."""
    first = np.full(int(form.max(initial=-1)) + 1, len(form), dtype=np.int64)
    backwards = np.flatnonzero(mask)[::-1]
    first[form[backwards]] = backwards  # where several words have one form, the last assignment wins
    return first


class _WordRuns(NamedTuple):
    """m runs of neighbouring words, without overlap, among n words.

    begin:  int64 [m], the first word of each run.
    end:    int64 [m], the end of each run (exclusive).
    member: int64 [n], the run of each word, -1 for none.

    With the runs "Marie Curie" and "Warsaw" in "Marie Curie left Warsaw", begin is 0, 3, end is 2, 4, and member is
    0, 0, -1, 1.
    """

    begin: Indices
    end: Indices
    member: Indices

    def any(self, mask: Bools) -> Bools:
        """Find the runs that have a word in the mask; bool [n] -> bool [m]."""
        # count[i] is the number of masked words before word i. It grows within a run that has one.
        count = np.zeros(len(mask) + 1, dtype=np.int64)
        np.cumsum(mask, out=count[1:])
        return count[self.end] > count[self.begin]

    def spread(self, flags: Bools) -> Bools:
        """Give each word the flag of its run, False outside of runs; bool [m] -> bool [n]."""
        return _append(flags, False)[self.member]


def _word_runs(inside: Bools, starts: Bools) -> _WordRuns:
    """The runs of neighbouring words that are ``inside``, cut before each word of ``starts``."""
    # A word begins a run if it is inside, and is a start or stands after a word outside. A run ends where the next word
    # begins another one or is outside.
    before = _of_word_before(inside, False)
    begin = inside & (starts | ~before)
    number = np.cumsum(begin) - 1
    after = _append(begin | ~inside, True)[1:]
    return _WordRuns(np.flatnonzero(begin), np.flatnonzero(inside & after) + 1, np.where(inside, number, -1))


# Step 1: named entities


def entity_runs(words: Words) -> _WordRuns:
    """The named entities. They are split at white space, as chunks are."""
    return _word_runs(~_is(words.ent, Ent.NONE) & ~_has(words.flags, Flag.SPACE), words.ent_start)


def modifiers(words: Words, entities: _WordRuns, content: Bools, cues: Codes) -> Bools:
    """The words that only modify the amount after them: "at least" in "at least two years"; bool [n].

    They are those before the first other content word of an entity that is no PERSON. In a name with capitals ("Over
    the Hedge"), a word with a capital is none, unless it opens a sentence or line.
    """
    inside = content & _is(words.ent, Ent.OTHER)
    modifier = inside & _has(cues, Cue.MODIFIER)
    amount = inside & ~modifier
    capital = _has(words.flags, Flag.CAPITAL)
    before = np.cumsum(amount) - amount  # amounts before each word
    opening = _append(before[entities.begin], -1)[entities.member] == before
    exact = entities.any(amount) & ~entities.any(amount & capital)
    in_name = capital & ~_sentence_initial(words) & ~entities.spread(exact)
    return modifier & opening & ~in_name


def entity_rules(words: Words, entities: _WordRuns, content: Bools, cues: Codes) -> tuple[Codes, Codes]:
    """Step 1: the rule of each content word of a named entity, and its rule of repetition; each uint8 [n].

    A PERSON that shares a name component with an earlier PERSON is a repetition as a whole: "Marie" after "Marie
    Curie". Any other entity is one only if an earlier entity had the same words. A number is never part of a
    repetition: it is factual until it has been mentioned itself.
    """
    person = _is(words.ent, Ent.PERSON)
    inside = content & (entities.member >= 0)
    # NO_RULE is 0, so that a product with a mask gives NO_RULE outside of it.
    rules = np.where(person, np.uint8(Rule.PERSON_ENTITY), np.uint8(Rule.NAMED_ENTITY)) * inside.view(np.uint8)

    shared = entities.spread(_shares_component(words, entities, inside & person, cues)) & person
    same = entities.spread(_same_entity(words, entities, inside)) & ~person
    repeated = np.where(shared, np.uint8(Rule.REPEATED_PERSON), same * np.uint8(Rule.REPEATED_ENTITY))
    return rules, repeated * (inside & ~is_number(words)).view(np.uint8)


def _shares_component(words: Words, entities: _WordRuns, names: Bools, cues: Codes) -> Bools:
    """Find the entities that have a name component of an earlier PERSON; bool [entities].

    Initials, titles and particles such as "van" are not name components, since unrelated people share them.
    """
    length = words.end - words.start
    initial = (length == 1) | ((length == 2) & ~_has(words.flags, Flag.ALPHA))
    component = names & ~initial & ~_has(cues, _NO_COMPONENT)
    at = np.flatnonzero(component)
    first = _first_index(words.form, component)[words.form[at]]
    owner = entities.member[at]  # the entity of each component; the component is shared if it first came before that
    shares = np.zeros(len(entities.begin), dtype=np.bool_)
    shares[owner[first < entities.begin[owner]]] = True
    return shares


def _same_entity(words: Words, entities: _WordRuns, mask: Bools) -> Bools:
    """Find the entities whose content words an earlier entity had in the same order; bool [entities]."""
    # The forms of all content words in a row, and where each entity's begin and end among them.
    at = np.flatnonzero(mask)
    forms = words.form[at]
    begin = np.searchsorted(at, entities.begin).tolist()
    end = np.searchsorted(at, entities.end).tolist()
    seen: set[bytes] = set()
    same = []
    for first, last in zip(begin, end, strict=True):
        # The key of an entity without content words is empty. It may be found again, but there is no word to mark then.
        key = forms[first:last].tobytes()
        same.append(key in seen)
        seen.add(key)
    return np.array(same, dtype=np.bool_)


# Step 2: noun chunks and numbers


def chunk_rules(words: Words, title: Bools, content: Bools, cues: Codes) -> Codes:
    """Step 2: the rule by which each word is informative, whether or not it is repeated; uint8 [n].

    Chunks are split at white space. Proper nouns and numbers count outside of chunks, too: a name that the parser
    leaves out of every chunk counts as a chunk of its own. In the title, every proper noun is a name.

    Args:
        words: the words.
        title: bool [n], see ``title_words``.
        content: bool [n], the content words that are no modifiers.
        cues: ``Cue`` bits [n].
    """
    chunks = _chunk_runs(words)
    paragraphs = _paragraphs(words, title, cues)
    proper = content & _is(words.pos, Pos.PROPN)
    noun = content & _NOUN[words.pos]
    capital = content & _has(words.flags, Flag.CAPITAL) & _NAME[words.pos]
    name = proper | (capital & ~_sentence_initial(words))

    # From the lowest precedence to the highest: each line overrides those above it.
    rules = np.where(is_number(words), np.uint8(Rule.NUMBER), np.uint8(Rule.NO_RULE))
    rules[noun & chunks.spread(_in_factual_role(words, chunks, paragraphs, cues))] = Rule.COMMON_NOUN
    rules[proper & (title | ~_heads_a_line(words, chunks, name))] = Rule.PROPER_NOUN
    rules[(noun | name) & _up_to_keyword(chunks, noun, cues)] = Rule.LIKELY_ORGANISATION
    rules[name & chunks.spread(_the_before_name(chunks, name, cues))] = Rule.LIKELY_ORGANISATION
    rules[capital & name & chunks.spread(_has_person_cue(words, chunks, capital, cues))] = Rule.LIKELY_PERSON
    rules[name & chunks.spread(_in_person_role(words, chunks, paragraphs, name))] = Rule.LIKELY_PERSON
    return rules


def is_number(words: Words) -> Bools:
    """Words with a digit, and numbers in words ("ten", "third") that are not pronouns or adverbs; bool [n]."""
    spelled = _has(words.flags, Flag.LIKE_NUM) & _SPELLED_NUMBER[words.pos]
    return _has(words.flags, Flag.DIGIT) | spelled | _is(words.pos, Pos.NUM)


def _chunk_runs(words: Words) -> _WordRuns:
    """The noun chunks, without white space. A chunk adds 1 to the depth at its start and takes it away at its end."""
    depth = np.zeros(len(words) + 1, dtype=np.int64)
    depth[words.chunks[:, 0]] += 1
    depth[words.chunks[:, 1]] -= 1
    starts = np.zeros(len(words), dtype=np.bool_)
    starts[words.chunks[:, 0]] = True
    return _word_runs((np.cumsum(depth[:-1]) > 0) & ~_has(words.flags, Flag.SPACE), starts)


def _sentence_initial(words: Words) -> Bools:
    """The words whose capital says nothing: the first with a letter or digit in a sentence or line; bool [n].

    A word is one if the latest such word before it stands before the start of its sentence or line.
    """
    # Word 5 of "He left . <newline> ( Later": the line opens at word 4, "(", and the latest word of letters is word 1.
    index = np.arange(len(words))
    new = words.sent_start | _of_word_before(_has(words.flags, Flag.SPACE), True)
    opening = np.maximum.accumulate(np.where(new, index, 0))
    lettered = _has(words.flags, _LETTER_OR_DIGIT)
    latest = _of_word_before(np.maximum.accumulate(np.where(lettered, index, -1)), -1)
    return latest < opening


def _heads_a_line(words: Words, chunks: _WordRuns, name: Bools) -> Bools:
    """The words that are no names although they may be tagged as proper nouns: "Biography", "Ingredients"; bool [n].

    The tagger takes the capital of a heading, or of a sentence's first word, for that of a name. Such a word is one if
    it is in an entity, or beside another name in its chunk ("Mount Everest").
    """
    initial = _sentence_initial(words)
    beside_name = chunks.spread(chunks.any(name & ~initial))
    return initial & _is(words.ent, Ent.NONE) & ~beside_name


def _paragraphs(words: Words, title: Bools, cues: Codes) -> Indices:
    """The number of each word's paragraph; int64 [n].

    A paragraph ends at a blank line, and at a line break after the end of a sentence; so prose with hard line breaks is
    one. The title belongs to the first paragraph, whose subject the parser may find in it.
    """
    space = _has(words.flags, Flag.SPACE)
    breaks = np.zeros(len(words.forms), dtype=np.int64)
    for form in np.unique(words.form[space]).tolist():
        breaks[form] = words.forms[form].count("\n")
    count = np.where(title, 0, breaks[words.form])
    ends = (count > 1) | ((count > 0) & _of_word_before(_has(cues, Cue.STOP), False))
    return np.cumsum(ends, dtype=np.int64)


def _follow(words: Words, links: Bools) -> Indices:
    """The end of each word's chain of heads, which is followed while the label is in ``links``; int64 [n].

    In "a lawyer, politician and judge" the conjuncts "politician" and "judge" lead to "lawyer" by CONJ. Each round
    doubles the length of the chains that are followed, so that a chain of 1,000 takes 10 rounds.
    """
    target = np.where(links[words.dep], words.head, np.arange(len(words)))
    while True:
        further = target[target]
        if (further == target).all():
            return target
        target = further


_CONJ = _table((Dep.CONJ,))
_CONJ_OR_APPOS = _table((Dep.CONJ, Dep.APPOS))


def _in_factual_role(words: Words, chunks: _WordRuns, paragraphs: Indices, cues: Codes) -> Bools:
    """Chunks that are predicative attribute, direct object or appositive; bool [chunks].

    A heading or an item of a list is no object of a verb in another paragraph. A conjunct has the role of the first
    conjunct ("a lawyer and politician"). A chunk that depends on the object of a manner preposition has no such role
    ("by trade, a dying one"). The "by" of an agent is not a manner preposition, since the parser labels it otherwise.
    """
    last = chunks.end - 1
    # The head of a chunk is its last word. For the governor, appositions lead back to the noun that they explain.
    holder = _follow(words, _CONJ)[last]  # the word whose role the chunk has
    near = paragraphs[words.head[holder]] == paragraphs[last]
    governor = words.head[_follow(words, _CONJ_OR_APPOS)[last]]
    by_manner = _is(words.dep[governor], Dep.PREP) & _has(cues[governor], Cue.MANNER)
    return _FACTUAL_ROLE[words.dep[holder]] & near & ~by_manner


def _up_to_keyword(chunks: _WordRuns, noun: Bools, cues: Codes) -> Bools:
    """The words of each chunk up to its last noun for a kind of organisation; bool [n].

    The words after that noun are about something else: "drama students" in "the high school drama students".
    """
    keyword = _append(noun & _has(cues, Cue.ORGANISATION), False)
    n = len(noun)
    # The place of the next keyword at or after each word, n for none. A word is one of these if that is in its chunk.
    ahead = np.minimum.accumulate(np.where(keyword, np.arange(n + 1), n)[::-1])[::-1][:-1]
    end = _append(chunks.end, 0)[chunks.member]  # 0 for words outside, whose member is -1
    return ahead < end


def _the_before_name(chunks: _WordRuns, name: Bools, cues: Codes) -> Bools:
    """Chunks that open with "the" and a name-like word; bool [chunks]."""
    # begin + 1 is in the array also where the chunk is the last word of the document.
    second = _append(name, False)[chunks.begin + 1] & (chunks.end - chunks.begin > 1)
    return _has(cues[chunks.begin], Cue.THE) & second


def _in_person_role(words: Words, chunks: _WordRuns, paragraphs: Indices, name: Bools) -> Bools:
    """Chunks that are subjects or appositives in their paragraph and end in a name-like word; bool [chunks]."""
    last = chunks.end - 1
    holder = _follow(words, _CONJ)[last]
    near = paragraphs[words.head[holder]] == paragraphs[last]
    return _PERSON_ROLE[words.dep[holder]] & near & name[last]


def _has_person_cue(words: Words, chunks: _WordRuns, capital: Bools, cues: Codes) -> Bools:
    """Chunks followed by a verb such as "born", or with a title before a capitalised word; bool [chunks]."""
    skipped = _append(_SKIPPED_BEFORE_CUE[words.pos], False)
    # In "Ada Lovelace (was born", the follower moves from "(" over "was" to "born".
    follower = chunks.end
    for _ in range(_CUE_REACH):
        follower = follower + skipped[follower]
    verb = _append(_has(cues, Cue.LIFE_EVENT), False)[follower]
    titled = _of_word_before(_has(cues, Cue.TITLE), False) & capital
    return verb | chunks.any(titled)
