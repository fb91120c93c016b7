"""What the engine reads out of a loaded spaCy pipeline: weights, labels, patterns. Knows its pipeline by structure."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Lexical attributes that the embedding may read: functions of a word's spelling, its norm and the space behind it.
LEXICAL = ("ORTH", "NORM", "LOWER", "PREFIX", "SUFFIX", "SHAPE", "SPACY", "IS_SPACE")

_CONVOLUTION = "residual(expand_window>>maxout>>layernorm>>dropout)"


class UnknownPipelineError(Exception):
    """The pipeline is not built as the engine expects; says where."""


class HashTable(NamedTuple):
    """One hash embedding: the column of the features that it reads, its seed, and its rows [nV, width]."""

    column: int
    seed: int
    rows: Floats


class Maxout(NamedTuple):
    """Maxout with layer norm: weight [nI, 3 * width] and bias [3 * width], pieces first; gain and shift [width]."""

    weight: Floats
    bias: Floats
    gain: Floats
    shift: Floats


class Tok2Vec(NamedTuple):
    """Words -> vectors: hash embeddings, a mixer, convolutions over three words."""

    columns: tuple[str, ...]
    tables: tuple[HashTable, ...]
    mixer: Maxout
    convolutions: tuple[Maxout, ...]

    @property
    def width(self) -> int:
        return len(self.mixer.gain)


class Transitions(NamedTuple):
    """The scorer of a transition system, and its moves.

    linear, linear_bias:  word vector -> hidden vector: [width, H], [H].
    features:             hidden vector -> its part in the state, for each role that a word can have: [H, F * 2 * H].
    padding:              the part of a missing word, [F * 2 * H]. In both, the two maxout pieces lie apart.
    state_bias:           [2 * H].
    scores, scores_bias:  state -> moves: [H, M], [M], M padded to a multiple of 16.
    moves:                names as spaCy spells them: "L-nsubj", "B-PERSON", "S".
    """

    linear: Floats
    linear_bias: Floats
    features: Floats
    padding: Floats
    state_bias: Floats
    scores: Floats
    scores_bias: Floats
    moves: tuple[str, ...]


class Pipeline(NamedTuple):
    """All that the engine needs of a pipeline."""

    shared: Tok2Vec  # of tagger and parser
    tagger: Floats  # [width, T padded]
    tagger_bias: Floats
    tags: tuple[str, ...]
    parser: Transitions
    ner_words: Tok2Vec  # of the entity recogniser
    ner: Transitions
    patterns: list[dict[str, Any]]  # of the attribute ruler
    hash: Any  # thinc's hash of 64-bit keys


def read_pipeline(nlp: Any) -> Pipeline:
    """Read a pipeline.

    Raises:
        UnknownPipelineError: it is built in another way, which is all that is wrong with it.
    """
    try:
        return _read(nlp)
    except UnknownPipelineError:
        raise
    except Exception as error:  # other internals than those that were looked for
        raise UnknownPipelineError(f"{type(error).__name__}: {error}") from error


def _read(nlp: Any) -> Pipeline:
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
    _expect(not softmax.attrs["softmax_normalize"], "a normalised tagger")
    tags = tuple(tagger.labels)
    listener = parser.model.layers[0]
    _expect(listener.name == "tok2vec-listener>>list2array>>linear", f"parser {listener.name}")
    own = ner.model.layers[0]
    _expect(own.name.endswith(">>list2array>>linear"), f"entity recogniser {own.name}")
    return Pipeline(
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
    if not condition:
        raise UnknownPipelineError(what)


def _tok2vec(model: Any, name: str) -> Tok2Vec:
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
    _expect(windows == {1} and model.layers[-1].attrs["pad"] == depth, f"window of {windows} words")
    columns = tuple(leaves[0].attrs["columns"])
    _expect(set(columns) <= set(LEXICAL), f"attributes {columns}")
    _expect(all(node.get_dim("nP") == 3 for node in maxouts), "maxout pieces")
    width = norms[0].get_dim("nO")
    _expect(
        all(node.get_dim("nO") == width for node in (*maxouts, *norms, *tables)) and width % 16 == 0, f"width {width}"
    )
    layers = [_maxout(maxout, norm) for maxout, norm in zip(maxouts, norms, strict=True)]
    return Tok2Vec(
        columns,
        tuple(
            HashTable(getter.attrs["index"][1], table.attrs["seed"], np.ascontiguousarray(table.get_param("E")))
            for getter, table in zip(getters, tables, strict=True)
        ),
        layers[0],
        tuple(layers[1:]),
    )


def _maxout(maxout: Any, norm: Any) -> Maxout:
    weight, bias = maxout.get_param("W"), maxout.get_param("b")  # [nO, nP, nI], [nO, nP]
    pieces_first = weight.transpose(1, 0, 2).reshape(-1, weight.shape[2])
    return Maxout(
        np.ascontiguousarray(pieces_first.T),
        np.ascontiguousarray(bias.T).ravel(),
        norm.get_param("G").copy(),
        norm.get_param("b").copy(),
    )


def _transitions(pipe: Any, roles: int) -> Transitions:
    model = pipe.model
    names = [model.name, model.layers[1].name, model.layers[2].name]
    _expect(names == ["parser_model", "precomputable_affine", "linear"], f"{pipe.name} {names}")
    _expect(model.attrs["has_upper"] and not model.attrs["unseen_classes"], f"{pipe.name} without upper layer")
    _expect(pipe.cfg["beam_width"] == 1 and not pipe.cfg.get("learn_tokens"), f"settings of {pipe.name}")
    linear = model.layers[0].layers[-1]
    lower, upper = model.layers[1], model.layers[2]
    hidden = lower.get_dim("nO")
    _expect((lower.get_dim("nF"), lower.get_dim("nP")) == (roles, 2), f"state of {pipe.name}")
    weight = lower.get_param("W").transpose(0, 2, 1, 3)  # [F, O, P, I] -> [F, P, O, I]
    padding = lower.get_param("pad").reshape(roles, hidden, 2).transpose(0, 2, 1)
    moves = tuple(pipe.moves.get_class_name(i) for i in range(pipe.moves.n_moves))
    _expect(upper.get_dim("nO") == len(moves), f"moves of {pipe.name}")
    return Transitions(
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
    return np.ascontiguousarray(np.pad(values, widths, constant_values=fill), dtype=np.float32)
