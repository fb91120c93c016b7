"""A loaded spaCy pipeline -> the weights, labels and patterns that the engine needs.

The pipeline is known by its structure and not by its name: every layer, setting and size that the engine relies on is
checked, and a pipeline that differs in one of them is refused.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Lexical attributes that the embedding may read. They depend on a word's spelling and on the space after it alone.
LEXICAL = ("ORTH", "NORM", "LOWER", "PREFIX", "SUFFIX", "SHAPE", "SPACY", "IS_SPACE")

_CONVOLUTION = "residual(expand_window>>maxout>>layernorm>>dropout)"


class UnknownPipelineError(Exception):
    """The pipeline is not built as the engine expects. The message says what differs."""


class HashTable(NamedTuple):
    """One hash embedding: an attribute's value is hashed to four rows, and the embedding is their sum.

    column: which of ``Tok2VecWeights.columns`` it reads.
    seed:   the seed of the hash.
    rows:   float32 [rows, width].
    """

    column: int
    seed: int
    rows: Floats


class MaxoutWeights(NamedTuple):
    """A maxout layer of three pieces with layer norm; nI numbers in, ``width`` numbers out.

    weight: float32 [nI, 3 * width], piece after piece, so that the maximum is over columns that are ``width`` apart.
    bias:   float32 [3 * width], likewise.
    gain:   float32 [width], of the layer norm.
    shift:  float32 [width], of the layer norm.
    """

    weight: Floats
    bias: Floats
    gain: Floats
    shift: Floats


class Tok2VecWeights(NamedTuple):
    """A network from words to vectors: hash embeddings, a mixer, and convolutions over three words.

    columns: names of the lexical attributes that the tables read.
    """

    columns: tuple[str, ...]
    tables: tuple[HashTable, ...]
    mixer: MaxoutWeights
    convolutions: tuple[MaxoutWeights, ...]

    @property
    def width(self) -> int:
        """Length of a word vector."""
        return len(self.mixer.gain)


class TransitionWeights(NamedTuple):
    """The scorer of a transition system with F words in a state, and its M moves. All arrays are float32.

    linear:      [width, H], word vector -> hidden vector, with ``linear_bias`` [H].
    features:    [H, F * 2 * H], hidden vector -> what the word adds to the state in each of F roles; within a role the
                 two maxout pieces come one after the other.
    padding:     [F * 2 * H], what a missing word adds, in the same order.
    state_bias:  [2 * H].
    scores:      [H, M], state -> moves, with ``scores_bias`` [M]; M is padded to a multiple of 16.
    moves:       names as spaCy spells them: "L-nsubj", "B-PERSON", "S".
    """

    linear: Floats
    linear_bias: Floats
    features: Floats
    padding: Floats
    state_bias: Floats
    scores: Floats
    scores_bias: Floats
    moves: tuple[str, ...]


class PipelineWeights(NamedTuple):
    """Everything that the engine needs of a pipeline."""

    shared: Tok2VecWeights  # of tagger and parser
    tagger: Floats  # [width, T], T = number of tags, padded to a multiple of 16
    tagger_bias: Floats  # [T], -inf in the padding
    tags: tuple[str, ...]
    parser: TransitionWeights
    ner_words: Tok2VecWeights  # of the entity recogniser
    ner: TransitionWeights
    patterns: list[dict[str, Any]]  # of the attribute ruler
    hash: Any  # thinc's hash of 64-bit keys


def read_pipeline(nlp: Any) -> PipelineWeights:
    """Read the weights, labels and patterns of a loaded pipeline.

    Raises:
        UnknownPipelineError: the pipeline is built in another way. spaCy can still run it.
    """
    try:
        return _read(nlp)
    except UnknownPipelineError:
        raise
    except Exception as error:  # the pipeline lacks an attribute that was looked for
        raise UnknownPipelineError(f"{type(error).__name__}: {error}") from error


def _read(nlp: Any) -> PipelineWeights:
    """See ``read_pipeline``; raises whatever an unknown pipeline makes it raise."""
    # The components, each by its factory: their names may differ. Tagger, parser and ruler depend on those before them.
    factories = [nlp.get_pipe_meta(name).factory for name in nlp.pipe_names]
    known = ["tok2vec", "tagger", "parser", "attribute_ruler", "ner"]
    _expect(sorted(factories) == sorted(known), f"components {factories}")
    order = [factories.index(name) for name in known[:4]]
    _expect(order == sorted(order) and factories.index("ner") > order[2], f"order of components {factories}")
    _expect(nlp.lang == "en", f"language {nlp.lang}")
    tokenizer = type(nlp.tokenizer)
    _expect((tokenizer.__module__, tokenizer.__name__) == ("spacy.tokenizer", "Tokenizer"), f"tokenizer {tokenizer}")
    tok2vec, tagger, parser, ruler, ner = (nlp.get_pipe(nlp.pipe_names[factories.index(name)]) for name in known)

    _expect(tagger.model.name == "tok2vec-listener>>with_array(softmax)", f"tagger {tagger.model.name}")
    _expect(tok2vec.model.ops.name == "numpy", f"device {tok2vec.model.ops.name}")
    softmax = tagger.model.layers[1].layers[0]
    # The engine takes the tag of the highest score, which needs no softmax.
    _expect(not softmax.attrs["softmax_normalize"], "a normalised tagger")
    tags = tuple(tagger.labels)
    listener = parser.model.layers[0]
    _expect(listener.name == "tok2vec-listener>>list2array>>linear", f"parser {listener.name}")
    own = ner.model.layers[0]
    _expect(own.name.endswith(">>list2array>>linear"), f"entity recogniser {own.name}")
    return PipelineWeights(
        shared=_tok2vec(tok2vec.model, tok2vec.model.name),
        tagger=_columns(softmax.get_param("W").T),
        tagger_bias=_columns(softmax.get_param("b"), fill=-np.inf),
        tags=tags,
        parser=_transitions(parser, roles=8),
        ner_words=_tok2vec(own.layers[0], own.name.removesuffix(">>list2array>>linear")),
        ner=_transitions(ner, roles=3),
        patterns=ruler.patterns,
        hash=tok2vec.model.ops.hash,
    )


def _expect(condition: bool, what: str) -> None:
    """Refuse the pipeline unless the condition holds."""
    if not condition:
        raise UnknownPipelineError(what)


def _tok2vec(model: Any, name: str) -> Tok2VecWeights:
    """The weights of a tok2vec model, found among its leaves in depth-first order.

    Thinc names a model after its layers, so that comparing the name compares the whole structure.
    """
    # The leaves of a network are ..., ints-getitem, hashembed, ints-getitem, hashembed, ..., maxout, layernorm, ...; an
    # ints-getitem picks one column of the features for the table after it.
    leaves = [node for node in model.walk(order="dfs_pre") if not node.layers]
    tables = [node for node in leaves if node.name == "hashembed"]
    maxouts = [node for node in leaves if node.name == "maxout"]
    norms = [node for node in leaves if node.name == "layernorm"]
    getters = [node for node in leaves if node.name == "ints-getitem"]
    depth = len(maxouts) - 1
    expected = (
        f"extract_features>>list2ragged>>with_array({'|'.join(['ints-getitem>>hashembed'] * len(tables))})"
        f">>with_array(maxout>>layernorm>>dropout)>>ragged2list>>with_array({'>>'.join([_CONVOLUTION] * depth)})"
    )
    _expect(depth >= 2 and name == expected, f"word vectors {name}")
    windows = {node.attrs["window_size"] for node in leaves if node.name == "expand_window"}
    # The rows of zeros between two texts must be as many as the convolutions, or else texts would see one another.
    _expect(windows == {1} and model.layers[-1].attrs["pad"] == depth, f"window of {windows} words")
    columns = tuple(leaves[0].attrs["columns"])
    _expect(set(columns) <= set(LEXICAL), f"attributes {columns}")
    _expect(all(node.get_dim("nP") == 3 for node in maxouts), "maxout pieces")
    width = norms[0].get_dim("nO")
    _expect(
        all(node.get_dim("nO") == width for node in (*maxouts, *norms, *tables)) and width % 16 == 0, f"width {width}"
    )
    # The first maxout is the mixer, the others are convolutions. The index of an ints-getitem is (slice, column).
    layers = [_maxout(maxout, norm) for maxout, norm in zip(maxouts, norms, strict=True)]
    return Tok2VecWeights(
        columns,
        tuple(
            HashTable(getter.attrs["index"][1], table.attrs["seed"], np.ascontiguousarray(table.get_param("E")))
            for getter, table in zip(getters, tables, strict=True)
        ),
        layers[0],
        tuple(layers[1:]),
    )


def _maxout(maxout: Any, norm: Any) -> MaxoutWeights:
    """Thinc's order is [output, piece, input]. Pieces come first here, so that a loop over outputs reads neighbours."""
    weight, bias = maxout.get_param("W"), maxout.get_param("b")  # [nO, nP, nI], [nO, nP]
    pieces_first = weight.transpose(1, 0, 2).reshape(-1, weight.shape[2])
    return MaxoutWeights(
        np.ascontiguousarray(pieces_first.T),
        np.ascontiguousarray(bias.T).ravel(),
        norm.get_param("G").copy(),
        norm.get_param("b").copy(),
    )


def _transitions(pipe: Any, roles: int) -> TransitionWeights:
    """The weights of a parser or an entity recogniser whose states have ``roles`` words."""
    model = pipe.model
    names = [model.name, model.layers[1].name, model.layers[2].name]
    _expect(names == ["parser_model", "precomputable_affine", "linear"], f"{pipe.name} {names}")
    _expect(model.attrs["has_upper"] and not model.attrs["unseen_classes"], f"{pipe.name} without upper layer")
    # A beam of one is the greedy search of ``parser`` and ``entities``. "Upper" is the layer from the state to the
    # moves.
    _expect(pipe.cfg["beam_width"] == 1 and not pipe.cfg.get("learn_tokens"), f"settings of {pipe.name}")
    linear = model.layers[0].layers[-1]
    lower, upper = model.layers[1], model.layers[2]
    hidden = lower.get_dim("nO")
    _expect((lower.get_dim("nF"), lower.get_dim("nP")) == (roles, 2), f"state of {pipe.name}")
    weight = lower.get_param("W").transpose(0, 2, 1, 3)  # [F, O, P, I] -> [F, P, O, I]
    padding = lower.get_param("pad").reshape(roles, hidden, 2).transpose(0, 2, 1)  # [1, F, O, P] -> [F, P, O]
    moves = tuple(pipe.moves.get_class_name(i) for i in range(pipe.moves.n_moves))
    _expect(upper.get_dim("nO") == len(moves), f"moves of {pipe.name}")
    return TransitionWeights(
        np.ascontiguousarray(linear.get_param("W").T),
        linear.get_param("b").copy(),
        np.ascontiguousarray(weight.reshape(roles * 2 * hidden, -1).T),
        np.ascontiguousarray(padding).ravel(),
        np.ascontiguousarray(lower.get_param("b").reshape(hidden, 2).T).ravel(),
        _columns(upper.get_param("W").T),
        _columns(upper.get_param("b"), fill=0),
        moves,
    )


def _columns(values: Floats, fill: float = 0.0) -> Floats:
    """Pad the last axis to a multiple of 16."""
    extra = -values.shape[-1] % 16
    widths = [(0, 0)] * (values.ndim - 1) + [(0, extra)]
    # A score of the padding is 0 or -inf, whatever the vector: its weights are zeros.
    return np.ascontiguousarray(np.pad(values, widths, constant_values=fill), dtype=np.float32)
