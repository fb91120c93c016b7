"""The engine runs a spaCy pipeline like en_core_web_sm on arrays instead of through Docs. It uses the same weights and
gives the same words, several times as fast.

spaCy's time goes into building Docs, into layers of small matrix products, and into two parsers that work on C++
objects word by word. Here a *group* of texts (about 4,000 words) goes through each step at once.

    texts --spelling--> words --vectors--> first convolution --network--> word vectors
          --parser--> heads and labels --tree, ruler--> sentences, parts of speech, noun chunks
          --entities--> entities

**1. Spelling** (``spelling.py``). A text is cut into *chunks* at every change between white space and other characters.
A single space after a chunk is a flag of its last word. A table holds the words of each chunk that was seen before. New
chunks go through spaCy's own tokenizer, all of a batch in one call. For each word the table holds what its spelling
says: the attributes that the network hashes, its ``Flag`` bits, and its lower-cased form.

**2. The network** (``network.py``, ``vectors.py``). There are two of one kind: one feeds the tagger and the parser, the
other feeds the entity recogniser. Each embeds a word as follows. For each attribute (norm, prefix, suffix, shape, space
after, is white space) it sums four rows of a hash table. It mixes these sums (maxout of 3 pieces, layer norm) to 96
numbers, and puts four convolutions on top: ``x + norm(maxout(W [left, x, right]))``, each over three words. The
embedding, the mixer and the three products of the first convolution depend on the spelling alone, and are looked up
(``vectors.py``). The other three convolutions are products of [rows, 288] x [288, 288] (``layers.py``). They take half
of all time, and cannot be remembered, since they depend on up to nine words. Between two texts lie four rows of zeros,
one for each convolution, as in spaCy.

**3. Tags, parse, entities** (``parser.py``, ``entities.py``, ``scorer.py``). The tag of a word is the highest of 50
scores. The parser is arc-eager: from a stack and a buffer it shifts, reduces, draws an arc to the left or to the right,
or opens a sentence. Eight words describe a state: two of the buffer, three of the stack and three children. Each has a
row that was multiplied beforehand. The sum of these rows, a maxout of 2 pieces and one small product score all moves,
and the best valid one is taken. Entities are found likewise from three words, with the moves begin, in, last, unit and
out (BILUO).

**4. Structure** (``tree.py``, ``ruler.py``). A label such as "prep||dobj" names the true head of a crossing arc. A
sentence begins at the left edge of each root. A table, made of the attribute ruler's patterns, gives the part of speech
for a word's tag, form, label and white space. Base noun phrases are those of spaCy's English.

**The tables** of chunks (with their words) and of vectors are bounded. Above a limit, the less used half is dropped.
``Engine.stats`` tells sizes and hit rates. Compiled code is kept on disk (``compiled.py``).

**A text has the same result alone and among others.** Each number of a product is one sum in one order, whatever rows
stand beside it (``layers.py``). BLAS, which rounds by the shape of the whole product, does not promise that.

**A text has the same result as in spaCy.** ``structure.py`` knows the pipeline by its structure and refuses any other.
``annotator.words`` compares the engine with spaCy on a sample at the start, and hands texts that make the engine fail
to spaCy.
"""

from annotator.engine.engine import Analysis, Engine, InexactError
from annotator.engine.structure import UnknownPipelineError

__all__ = ["Analysis", "Engine", "InexactError", "UnknownPipelineError"]
