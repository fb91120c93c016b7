"""The engine: a spaCy pipeline of the kind of en_core_web_sm, run on arrays instead of through Docs. Same weights, same
words, several times as fast.

spaCy's time goes into building Docs, into layers of small matrix products, and into two parsers that work on C++
objects word by word. Here a *group* of texts (about 4,000 words) goes through each step at once.

    texts --lexicon--> words --vectors--> embedded rows --network--> word vectors
          --transitions--> heads and labels --tree, ruler--> sentences, parts of speech, noun chunks
          --transitions--> entities

**1. Spelling** (``lexicon.py``). A text is cut into *chunks* at every change between white space and other characters;
a single space behind a chunk is a flag of its last word. A table holds the words of each chunk that was seen; new
chunks go through spaCy's own tokenizer, all of a batch at once. Of each word the table holds what its spelling says:
the hashes that the network reads, ``Flag`` bits, the lower-cased form.

**2. The network** (``network.py``, ``vectors.py``). There are two of one kind: one feeds tagger and parser, one the
entity recogniser. Each embeds a word as the sum of four rows of a hash table for each of its attributes (norm,
prefix, suffix, shape, space behind, is white space), mixes these (maxout of 3 pieces, layer norm) to 96 numbers, and
puts four convolutions on top: ``x + norm(maxout(W [left, own, right]))``, each over three words. Embedding, mixer and
the first convolution's three products depend on the spelling alone: they are looked up (``vectors.py``). The other
three convolutions are products of [rows, 288] x [288, 288] (``layers.py``), half of all time, and cannot be
remembered: they depend on up to nine words. Between two texts lie four rows of zeros, one for each convolution, as in
spaCy.

**3. Tags, parse, entities** (``transitions.py``). The tag is the highest of 50 scores. The parser is arc-eager:
from a stack and a buffer, it shifts, reduces, draws an arc to the left or right, or opens a sentence. The eight words
that describe a state (two of the buffer, three of the stack, three children) each have a row that was multiplied
beforehand; their sum, maxout of 2, and one small product score all moves, and the best valid one is taken. Entities
are found likewise from three words, with begin, in, last, unit and out (BILUO).

**4. Structure** (``tree.py``, ``ruler.py``). A label such as "prep||dobj" names the true head of a crossing arc;
sentences begin at the left edge of each root; parts of speech follow from tag, form, label and white space by the
attribute ruler's patterns, as a table; base noun phrases as in spaCy's English.

**The caches** are bounded: of chunks (and their words), and of vectors. Above a limit, the less used half goes.
``Engine.stats`` tells sizes and hit rates. Compiled code is kept on disk (``compiled.py``).

**The same result alone and among others.** Each number of a product is one sum in one order, whatever rows stand
beside it (``layers.py``; BLAS rounds by the shape of the whole product).

**The same result as spaCy.** ``structure.py`` reads the pipeline by its structure and refuses any other.
``annotator.words`` compares both on a sample at start, and hands texts that make the engine fail to spaCy.
"""

from annotator.engine.engine import Analysis, Engine, InexactError
from annotator.engine.structure import UnknownPipelineError

__all__ = ["Analysis", "Engine", "InexactError", "UnknownPipelineError"]
