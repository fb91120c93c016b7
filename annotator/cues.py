"""The word lists of the fact rules, lower-cased. The paper names a few words of each list; these lists have more."""

from __future__ import annotations

import enum


class Cue(enum.IntFlag):
    """The lists that the form of a word is in, as bits."""

    THE = 1
    TITLE = 2  # a title, which stands before a person's name
    LIFE_EVENT = 4  # a verb whose subject is a person
    ORGANISATION = 8  # a kind of organisation
    MANNER = 16  # a preposition that says how
    NAME_PARTICLE = 32  # a part of many unrelated names
    MODIFIER = 64  # a word before an amount that makes it less or more exact
    STOP = 128  # a mark that ends a sentence, or may stand after its end


_WORDS = {
    Cue.THE: "the",
    Cue.TITLE: """
        dr dr. doctor prof prof. professor mr mr. mrs mrs. ms ms. miss sir dame lord lady king queen prince
        princess emperor empress duke duchess count countess baron baroness pope bishop archbishop cardinal
        father sister brother saint st. rabbi imam sheikh sultan reverend rev. judge justice president senator
        governor mayor chancellor ambassador minister captain capt. colonel col. general gen. lieutenant lt.
        major maj. sergeant sgt. admiral adm. commander coach
        """,
    Cue.LIFE_EVENT: """
        born died dies married marries divorced raised baptized baptised christened buried educated graduated
        graduates studied attended emigrated immigrated retired retires knighted ordained orphaned
        """,
    Cue.ORGANISATION: """
        committee council university college institute institution academy school faculty commission
        corporation company association society organization organisation federation confederation foundation
        league union alliance party ministry department agency bureau authority board parliament senate
        congress assembly court tribunal army navy regiment brigade battalion bank hospital museum library
        observatory laboratory church diocese club team orchestra ensemble choir consortium guild
        inc inc. ltd ltd. llc corp corp. plc gmbh
        """,
    Cue.MANNER: "by through via like without per",
    Cue.NAME_PARTICLE: """
        de da di du del della des dos la le van von der den ter ten zu zum zur af av of bin ibn ben al el abu
        y e jr jr. sr sr. ii iii iv
        """,
    Cue.MODIFIER: """
        about approximately approx approx. around roughly circa ca ca. c. nearly almost barely hardly close to over
        under above below up upwards at least most more less fewer greater than as many much only just merely exactly
        precisely perhaps maybe possibly probably estimated between
        """,
    Cue.STOP: """ . ! ? : ; … ... " ” ’ ) ] """,
}

# Lower-cased word -> its Cue bits. A word of two lists has both bits.
LEXICON: dict[str, int] = {}
for _cue, _words in _WORDS.items():
    for _word in _words.split():
        LEXICON[_word] = LEXICON.get(_word, 0) | int(_cue)
