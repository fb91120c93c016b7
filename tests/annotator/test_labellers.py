"""Labellers of other domains, found by real entry points and run by real workers."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from annotator import Annotator, AnnotatorSettings, Document, FactClass, LabelledTokens
from annotator.labellers import GROUP, Labeller, find_labeller
from lacy_stream.recipe import RecipeError, load_recipe
from lacy_stream.stream.pool import AnnotationPool
from lacy_stream.train.trainer import train

ROOT = Path(__file__).resolve().parents[2]
LABELS = (ROOT / "docs" / "labels.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```python\n(.[^`]*def formulas_and_quantities.*?)```", LABELS, re.S)
TEXT = "Heat 12.5 g of NaCl and H2SO4 to 80 °C for an hour."
MARKED = ["12.5 g", "NaCl", "H2SO4", "80 °C"]

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a package of one module, and takes it away again."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []

    def install(module: str, code: str, version: str = "1.0", **entries: str) -> Path:
        file = tmp_path / f"{module}.py"
        file.write_text(textwrap.dedent(code), encoding="utf-8")
        for old in tmp_path.glob(f"{module}-*.dist-info"):
            shutil.rmtree(old)
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n")
        lines = [f"{name} = {module}:{attribute}" for name, attribute in entries.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
        names.append(module)
        sys.modules.pop(module, None)
        importlib.invalidate_caches()
        return file

    yield install
    for name in names:
        sys.modules.pop(name, None)


def facts(text: str, tokens: LabelledTokens) -> str:
    """What the factual tokens cover; a bar between stretches."""
    parts = [text[a:b] if c == FactClass.FACTUAL else "|" for (a, b), c in zip(tokens.offsets.tolist(), tokens.classes)]
    return re.sub(r"\|+", "|", "".join(parts)).strip("|")


# --- the example of docs/labels.md --------------------------------------------------------------------------------


@pytest.mark.process
def test_example_in_a_pool(install: Install, tokenizer_path: Path) -> None:
    """Installed under a name, the page's labeller marks formulas and quantities in real workers, in texts and in rows
    of ids, and leaves alone what is not to be annotated or comes with spans."""
    install("chemistry", EXAMPLE, chemistry="formulas_and_quantities")
    plain = Annotator(tokenizer_path, model=None)
    (tokens,) = plain.annotate([TEXT])
    row = np.append(tokens.ids, plain.eos_id)
    documents = [
        Document("text", TEXT),
        Document("ids", "", ids=row),
        Document("code", TEXT, annotate=False),
        Document("judged", TEXT, spans="[[0, 4]]"),
    ]
    with AnnotationPool(AnnotatorSettings(tokenizer_path, labeller="chemistry"), num_workers=2) as pool:
        text, ids, code, judged = [pool.submit(document).result(timeout=240) for document in documents]
        identity = pool.identity
    assert facts(TEXT, text) == "|".join(f" {part}" for part in MARKED)
    assert ids.classes.tolist() == [*text.classes.tolist(), FactClass.GRAMMATICAL]
    assert (facts(TEXT, code), facts(TEXT, judged)) == ("", "Heat")
    assert identity["labeller"] == "chemistry:formulas_and_quantities"
    assert identity["labeller_package"] == "chemistry 1.0" and "model" not in identity


@pytest.mark.process
@pytest.mark.parametrize("output", ["terminal", "--json", "--html"])
def test_example_on_the_command_line(tmp_path: Path, output: str) -> None:
    """`python -m annotator FILE --labeller MODULE:FUNCTION` shows what it marks, and needs no installed package."""
    (tmp_path / "chemistry.py").write_text(EXAMPLE, encoding="utf-8")
    (tmp_path / "paper.txt").write_text(TEXT, encoding="utf-8")
    options = {"terminal": [], "--json": ["--json"], "--html": ["--html", "out.html"]}[output]
    command = [sys.executable, "-m", "annotator", "paper.txt", "--labeller", "chemistry:formulas_and_quantities"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([*command, *options], cwd=tmp_path, env=env, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    if output == "--json":
        assert '"spans": [[5, 11], [15, 19], [24, 29], [33, 38]]' in done.stdout and '"words"' not in done.stdout
    elif output == "--html":
        page = (tmp_path / "out.html").read_text(encoding="utf-8")
        assert page.count("LABELLER") == len(MARKED) and "H2SO4" in page
    else:
        assert "Heat [12.5 g] of [NaCl] and [H2SO4] to [80 °C] for an hour." in done.stdout
        assert "marked by the labeller" in done.stdout and "noun chunk" not in done.stdout


# --- what a labeller may be ---------------------------------------------------------------------------------------


def test_class_is_made_once(install: Install, tokenizer_path: Path) -> None:
    """A class is instantiated once in a process; lists and arrays are welcome; it sees whole texts."""
    install(
        "stateful",
        """
        import numpy as np

        class Counting:
            made = 0

            def __init__(self):
                Counting.made += 1

            def __call__(self, text):
                assert text == "aa bb cc"
                return np.array([[0, 2], [1, 2]]) if Counting.made == 1 else []
        """,
    )
    annotator = Annotator(tokenizer_path, labeller="stateful:Counting")
    for tokens in annotator.annotate(["aa bb cc"] * 3):
        assert facts("aa bb cc", tokens) == "aa"


def test_control_ids_are_never_facts(install: Install, tokenizer_path: Path) -> None:
    """A begin-of-text id stands where the first character does, and is not delegated with it; each segment of a row is
    a text of its own."""
    install("first", "def letter(text): return [(0, 1)]")
    annotator = Annotator(tokenizer_path, labeller="first:letter")
    (tokens,) = Annotator(tokenizer_path, model=None).annotate(["Ada"])
    (row,) = annotator.annotate_ids([np.array([1, *tokens.ids, 2, *tokens.ids])])
    fact, other, control = FactClass.FACTUAL, FactClass.OTHER, FactClass.GRAMMATICAL
    word = [fact] + [other] * (len(tokens) - 1)
    assert row.classes.tolist() == [control, *word, control, *word]


@pytest.mark.process
def test_workers_load_neither_spacy_nor_torch(install: Install, tokenizer_path: Path) -> None:
    """A labeller stands in for the parser, which is not loaded; what the labeller imports is its own business."""
    install(
        "light",
        """
        import sys

        def whole_text_if_light(text):
            if not {"spacy", "torch", "thinc"} & set(sys.modules):
                yield 0, len(text)
        """,
    )
    with AnnotationPool(AnnotatorSettings(tokenizer_path, labeller="light:whole_text_if_light"), num_workers=1) as pool:
        assert facts(TEXT, pool.submit(Document("x", TEXT)).result(timeout=240)) == TEXT


def test_identity_notices_what_changes(install: Install) -> None:
    """Another version of the package, another `version`, and another file are other labels; the same is the same."""
    code = "def label(text):\n    return []\nlabel.version = '{}'\n"
    identities = []
    for source, version in [(code.format(1), "1.0"), (code.format(1), "1.1"), (code.format(2), "1.1")]:
        install("changing", source, version=version, it="label")
        identities.append(Labeller("it").identity)
    first, package, attribute = identities
    assert first | {"labeller_package": "changing 1.1"} == package
    assert {key for key in package if package[key] != attribute[key]} == {"labeller_version", "labeller_file"}
    assert (package["labeller_version"], attribute["labeller_version"]) == ("1", "2")
    assert Labeller("it").identity == attribute


# --- mistakes -----------------------------------------------------------------------------------------------------


def test_names_that_are_none(install: Install) -> None:
    """An unknown name says which are installed, an unknown module that it is missing, a name of two which they are."""
    install("one", "def label(text): return []", known="label", twice="label")
    install("two", "def label(text): return []", twice="label")
    with pytest.raises(ValueError, match=r"labeller: 'nothing' is no entry point .*\(installed: .*known.*callable"):
        find_labeller("nothing")
    with pytest.raises(ValueError, match="there is no module 'not_there.inner'"):
        find_labeller("not_there.inner:label")
    with pytest.raises(ValueError, match="'twice' is the name of several, .*:label, .*:label"):
        find_labeller("twice")
    assert find_labeller("known").value == find_labeller("one:label").value == "one:label"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("odd:missing", "cannot be loaded: AttributeError"),
        ("odd:number", "is int. Give a callable"),
        ("odd:Broken", "cannot be loaded: KeyError: 'weights'"),
        ("odd.inner:label", "cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_loaded(install: Install, name: str, message: str) -> None:
    """An attribute that is missing, no callable, a constructor that fails, a sub-module that is not there."""
    code = "number = 5\nclass Broken:\n    def __init__(self):\n        raise KeyError('weights')\n"
    install("odd", code)
    with pytest.raises(ValueError, match=f"labeller: '{name}' {message}"):
        Labeller(name)


def test_recipe_names_a_labeller_that_is_not_there() -> None:
    """The run stops before anything is loaded, with the key, the value and the way out."""
    recipe = load_recipe(ROOT / "recipes" / "lacy_334m.yaml", ["annotator.labeller=nothing", "autoresume=false"])
    with pytest.raises(RecipeError, match="annotator.labeller: 'nothing' is no entry point"):
        train(recipe)


# --- faults -------------------------------------------------------------------------------------------------------

FAULTY = """
import os

def label(text):
    if text == "raises":
        raise KeyError("no such element")
    if text == "outside":
        return [(0, 3), (5, 99)]
    if text == "no spans":
        return 5
    if text == "kills":
        os._exit(7)
    return [(0, 4)]
"""


@pytest.mark.process
def test_faults_of_a_labeller_cost_their_document_only(install: Install, tokenizer_path: Path) -> None:
    """A text for which the labeller raises, gives no spans or spans outside, or ends its process, keeps its tokens,
    goes without facts and is named with the reason; its neighbours have theirs."""
    install("faulty", FAULTY)
    texts = ["fine", "raises", "outside", "no spans", "kills", "last"]
    with AnnotationPool(AnnotatorSettings(tokenizer_path, labeller="faulty:label"), num_workers=1) as pool:
        futures = [pool.submit(Document(text, text)) for text in texts]
        found = [facts(text, future.result(timeout=240)) for text, future in zip(texts, futures, strict=True)]
        assert found == ["fine", "", "", "", "", "last"] and all(len(future.result()) for future in futures)
        assert set(pool.quarantine) == set(texts[1:-1])
        assert "KeyError: 'no such element'" in pool.quarantine["raises"]
        assert "labeller 'faulty:label': spans: (5, 99) is no span of a text of 7" in pool.quarantine["outside"]
        assert "labeller 'faulty:label'" in pool.quarantine["no spans"]
        assert "exit code 7" in pool.quarantine["kills"]
        assert pool.report.counts()["document_quarantined"] == 4


@pytest.mark.process
def test_labels_of_another_version_are_not_taken_from_the_cache(
    install: Install, tokenizer_path: Path, tmp_path: Path
) -> None:
    """A label cache serves the labels of the labeller that made them, and of no other version."""
    for version, cached in [("1.0", 0), ("1.0", 1), ("1.1", 0)]:
        install("cached", "def label(text):\n    return [(0, 4)]\n", version=version, it="label")
        settings = AnnotatorSettings(tokenizer_path, labeller="it")
        with AnnotationPool(settings, num_workers=1, label_cache=tmp_path / "labels") as pool:
            assert (pool.submit(Document("x", TEXT)).result(timeout=240).classes == FactClass.FACTUAL).any()
            assert pool.stats().cached == cached
