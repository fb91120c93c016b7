"""Recipes: all that ship are right, and what is wrong is named before anything is loaded."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lacy_stream.recipe import METHOD_NAMES, RecipeError, check_recipe, dump_recipe, load_recipe, tokenizer_path

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
DEMO = Path(__file__).parent.parent / "recipes" / "lacy_demo.yaml"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipe_is_right(path: Path) -> None:
    """Every recipe loads, names a tokenizer that is there, and survives being written and read again."""
    recipe = load_recipe(path)
    if path != DEMO:  # `make demo` trains its own
        assert tokenizer_path(recipe.tokenizer.name).is_file()
    assert check_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe


STEPS = {"baseline": 340_000, "lacy+ignorefacts": 440_000, "lacy+ignore": 460_000}


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_recipes_have_the_papers_settings(method: str) -> None:
    """Tables 3 and 4 and section 5.4, for every method in both sizes: width, batch, learning rate, warm-up and steps;
    calls on 15% of the tokens; and what the method needs."""
    for size, width, batch, rate, warmup in [("334m", 1024, 128, 2e-4, 2560), ("1b", 2048, 112, 1e-4, 6400)]:
        recipe = load_recipe(DEMO.with_name(f"{method}_{size}.yaml"))
        assert (recipe.model.d_model, recipe.model.n_heads, recipe.model.n_layers) == (width, 16, 24)
        assert (recipe.global_train_batch_size, recipe.max_seq_len, recipe.optimizer.lr) == (batch, 1024, rate)
        steps = STEPS.get(method, 400_000)
        assert (recipe.scheduler.t_warmup, recipe.max_duration) == (f"{warmup}ba", f"{steps}ba")
        assert (recipe.optimizer.weight_decay, recipe.precision) == (0.1, "amp_bf16")
        mask = recipe.algorithms.call_mask
        assert (mask.method, mask.call_fraction, mask.ignore_fraction) == (method, 0.15, 0.15)
        assert (mask.objective, mask.rank_calls_by) == ("paper", "logit")
        assert (recipe.run_name, recipe.save_folder) == (f"{method}-{size}", f"runs/{method}-{size}")
        assert (mask.reference == "runs/reference-1b/latest-rank0.pt") == (method in ("rho-1", "spacy+refloss"))


@pytest.mark.parametrize("size", ["334m", "1b"])
@pytest.mark.parametrize("method", ["lacy", "baseline"])
def test_recipes_that_defer(method: str, size: str) -> None:
    """Beside the paper's recipes stand those of the objective that selects better: nothing else differs."""
    paper, defer = (load_recipe(DEMO.with_name(f"{method}{part}_{size}.yaml")) for part in ("", "_defer"))
    mask = defer.algorithms.call_mask
    assert (mask.objective, mask.rank_calls_by) == ("defer", "probability")
    mask.objective, mask.rank_calls_by = "paper", "logit"
    name = f"{method}-defer-{size}"
    assert (defer.run_name, defer.save_folder) == (name, f"runs/{name}")
    defer.run_name, defer.save_folder = paper.run_name, paper.save_folder
    assert defer == paper


def test_reference_recipe() -> None:
    """Table 4's reference model: 1.27B, 2,540k steps at 1.5e-4, no calls."""
    recipe = load_recipe(DEMO.with_name("reference_1b.yaml"))
    assert (recipe.optimizer.lr, recipe.max_duration, recipe.model.d_model) == (1.5e-4, "2540000ba", 2048)
    assert recipe.algorithms.call_mask.method == "baseline"


@pytest.mark.parametrize(("name", "expected"), [("lacy_334m", 334e6), ("lacy_1b", 1.27e9)])
def test_model_sizes(name: str, expected: float) -> None:
    """The built models have 334M and 1.27B parameters within 1.5%, embeddings counted once."""
    from lacy_stream.model import build_model

    recipe = load_recipe(DEMO.with_name(f"{name}.yaml"))
    with torch.device("meta"):
        model = build_model(recipe.model, vocab_size=32_001, max_seq_len=1024, call_token_id=32_000, eos_id=2)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(expected, rel=0.015)


def test_overrides_replace_values() -> None:
    """key.sub=value replaces one value, null removes a part, and the rest stays."""
    recipe = load_recipe(DEMO, ["train_loader.dataset.local=elsewhere", "optimizer.lr=1e-5", "eval_loader=null"])
    assert (recipe.train_loader.dataset.local, recipe.train_loader.dataset.split) == ("elsewhere", "train")
    assert (recipe.optimizer.lr, recipe.eval_loader) == (1e-5, None)


def test_streams() -> None:
    """Several streams by name, each with its own settings and weight, become the arguments of a corpus."""
    from lacy_stream.corpus import Source
    from lacy_stream.recipe_data import corpus_arguments

    streams = "{wiki: {local: w, split: train, proportion: 0.9}, code: {local: c, proportion: 0.1, annotate: false}}"
    recipe = load_recipe(DEMO, [f"train_loader.dataset={{streams: {streams}, epoch_size: 500, shuffle: true}}"])
    arguments = corpus_arguments(recipe.train_loader.dataset)
    assert arguments["data"] == {
        "wiki": Source("w", split="train", proportion=0.9),
        "code": Source("c", proportion=0.1, annotate=False),
    }
    assert (arguments["epoch_size"], arguments["shuffle"]) == (500, True) and "local" not in arguments


def test_facts_need_no_parser_where_labels_come_otherwise() -> None:
    """Without a spaCy pipeline a recipe may name a labeller, or the column of spans of each stream with facts."""
    judged, wiki, code = "{local: a, spans_column: s}", "{local: b}", "{local: c, annotate: false}"
    load_recipe(DEMO, ["annotator.model=null", "annotator.labeller=chemistry"])
    recipe = load_recipe(DEMO, ["annotator.model=null", f"train_loader.dataset={judged}"])
    assert recipe.train_loader.dataset.spans_column == "s"
    load_recipe(DEMO, ["annotator.model=null", f"train_loader.dataset={{streams: {{a: {judged}, c: {code}}}}}"])
    with pytest.raises(RecipeError, match="no facts to delegate in train_loader.dataset.streams.b; .*spans_column"):
        load_recipe(DEMO, ["annotator.model=null", f"train_loader.dataset={{streams: {{a: {judged}, b: {wiki}}}}}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_seq_len_=64", r"^max_seq_len_: unknown key \(value 64\); the nearest known key is max_seq_len$"),
        ("train_loader.dataset.shufle=true", r"^train_loader.dataset.shufle: .*train_loader.dataset.shuffle$"),
        ("algorithms.call_mask.fraction=0.2", "algorithms.call_mask.fraction: unknown key.*call_fraction"),
        ("callbacks.speed_monitr={}", "callbacks.speed_monitr: unknown key.*callbacks.speed_monitor"),
        ("optimiser.lr=1", "optimiser: unknown key.*optimizer"),
        ("max_seq_len=long", "max_seq_len: 'long' does not fit: .*Integer"),
        ("max_seq_len=64.5", "max_seq_len: .*64.5.*Integer"),
        ("optimizer.lr=fast", "optimizer.lr: .*'fast'.*Float"),
        ("model=gpt2", "model: 'gpt2' is not a mapping"),
        ("train_loader.dataset=[1]", "train_loader.dataset: .* is not a mapping"),
        ("max_seq_len=1", "max_seq_len: 1 must be at least 2"),
        ("model.n_layers=0", "model.n_layers: 0 must be greater than 0"),
        ("model.d_model=190", "model.d_model: 190 is not a multiple of model.n_heads, 4"),
        ("optimizer.lr=0", "optimizer.lr: 0.0 must be greater than 0"),
        ("optimizer.lr=.nan", "optimizer.lr: nan must be greater than 0"),
        ("optimizer.betas=[0.9]", "optimizer.betas: .*two numbers"),
        ("optimizer.name=adam", "optimizer.name: 'adam' is not one of"),
        ("max_duration=2ep", "max_duration: '2ep' is not a duration"),
        ("max_duration=100", "max_duration: '100' is not a duration"),
        ("eval_interval=often", "eval_interval: 'often' is not a duration"),
        ("precision=fp64", "precision: 'fp64' is not one of"),
        ("device_train_microbatch_size=0", "device_train_microbatch_size: 0 must"),
        ("device_train_microbatch_size=all", "device_train_microbatch_size: 'all' is neither"),
        ("algorithms.call_mask.call_fraction=1", "algorithms.call_mask.call_fraction: 1.0 must lie between 0 and 1"),
        ("algorithms.call_mask.call_fraction=0", "algorithms.call_mask.call_fraction: 0.0 .*method: baseline"),
        ("algorithms.call_mask.method=lac", "algorithms.call_mask.method: 'lac' is not one of"),
        (
            "algorithms.call_mask.ignore_fraction=0.9",
            "ignore_fraction: 0.9 must lie between 0 and .* 0.15, leaves of 1",
        ),
        ("algorithms.call_mask.method=rho-1", "call_mask.reference: rho-1 compares with a reference model, and none"),
        ("algorithms.call_mask.reference=x.pt", "call_mask.reference: lacy uses no reference model"),
        ("annotator.model=null", "annotator.model: null gives no facts to delegate in train_loader.dataset;"),
        ("train_loader.dataset={local: x, spans_column: s, tokens_column: t}", "spans_column: 's' counts characters"),
        ("eval_loader.dataset={local: x, spans_column: s, annotate: false}", "spans_column: 's' brings labels"),
        ("algorithms.call_mask.method=llm-judge", "method: llm-judge takes labels that come with the data"),
        ("annotator.engine=fast", "annotator.engine: 'fast' is not one of"),
        ("annotator.num_workers=0", "annotator.num_workers: 0 must be greater than 0"),
        ("run_name='${oc.env:HOME}'", "interpolation"),
        ("optimizer.lr=.inf", "optimizer.lr: inf must be greater than 0, and finite"),
        ("optimizer.weight_decay=.nan", "optimizer.weight_decay: nan must not be negative"),
        ("seed=5000000000", r"seed: 5000000000 must be less than 2\^32"),
        ("max_duration=0ba", "max_duration: '0ba' must be greater than 0"),
        ("eval_interval=0ba", "eval_interval: '0ba' must be greater than 0"),
        ("max_duration=4096tok", "scheduler.t_warmup: '100ba' is counted in another unit than max_duration, '4096tok'"),
        ("loggers.wandb={project: x}", "loggers.wandb: the package wandb is not installed: pip install wandb"),
        ('loggers.file={filename: "{nope}/x.txt"}', "loggers.file.filename: unknown placeholder {nope}"),
        ("eval_loader.dataset.download_timeout=-1", "eval_loader.dataset.download_timeout: -1.0 must be greater"),
        ("eval_loader.dataset.shuffle_seed=-1", "eval_loader.dataset.shuffle_seed: -1 must not be negative"),
        ("call_fraction=0.2", "call_fraction: unknown key .*nearest known key is algorithms.call_mask.call_fraction"),
        ("train_loader.num_workers=4", "train_loader.num_workers: .*nearest known key is annotator.num_workers"),
        ("optimizer.betas=0.9", "optimizer.betas: 0.9 does not fit"),
        ("annotator.num_workers=100000", "annotator.num_workers: 100000 processes"),
        ("eval_subset_num_batches=-5", "eval_subset_num_batches: -5 must be at least 1, or -1"),
        ("autoresume=true", "autoresume: true needs .* save_overwrite: false"),
        ("load_path=nowhere.pt", "load_path: there is no file 'nowhere.pt'"),
        ("zzz=1", "zzz: unknown key .*known are run_name, seed"),
        ("train_loader.dataset={}", "train_loader.dataset.local: missing; .* in train_loader.dataset.streams"),
        ("train_loader.dataset={streams: {a: {local: x, shuffle: true}}}", "streams.a.shuffle: unknown key"),
        ("train_loader.dataset={streams: {a: x}}", "streams.a: 'x' is not a mapping"),
        ("train_loader.dataset={streams: {a: {split: x}}}", "streams.a.local: missing"),
        (
            "train_loader.dataset={streams: {a: {local: x, choose: 1, repeat: 2}}}",
            "streams.a: repeat and choose exclude",
        ),
        ("train_loader.dataset={streams: {a: {local: x, repeat: -2}}}", "streams.a.repeat: -2.0 must not be negative"),
        ("train_loader.dataset.streams={a: {local: x}}", "dataset.local: belongs to each of the streams a, not beside"),
        ("annotator.label_cache_limit_gb=0", "annotator.label_cache_limit_gb: 0.0 must be greater than 0"),
        ("just_a_word", "override 'just_a_word' is not of the form key.sub=value"),
    ],
)
def test_mistake_is_named(override: str, message: str) -> None:
    """An unknown key, a wrong type or an impossible value is an error with the key, the value and the way out."""
    with pytest.raises(RecipeError, match=message):
        load_recipe(DEMO, [override])


def test_missing_key_is_named(tmp_path: Path) -> None:
    """A recipe without a key that has no default says which."""
    values = yaml.safe_load(DEMO.read_text())
    del values["train_loader"]["dataset"]["local"]
    with pytest.raises(RecipeError, match=r"train_loader.dataset.local"):
        check_recipe(values)


def test_recipe_that_is_no_text(tmp_path: Path) -> None:
    """A file that is not UTF-8 is one clear error."""
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(RecipeError, match="x.yaml' cannot be read"):
        load_recipe(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    "content", ["", "- a\n- b\n", "a: [", "model: ${x}\n", "!!python/object:os.system {}\n", "a: 1\na: 2\n"]
)
def test_file_that_is_no_recipe(tmp_path: Path, content: str) -> None:
    """An empty file, a list, broken YAML, a reference, a Python tag or a repeated key is one clear error."""
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(RecipeError):
        load_recipe(tmp_path / "x.yaml")


def test_missing_recipe(tmp_path: Path) -> None:
    """A recipe that is not there is named."""
    with pytest.raises(RecipeError, match="nothing.yaml"):
        load_recipe(tmp_path / "nothing.yaml")


def test_ranks_must_share_the_batch_and_the_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch or a number of lanes that the ranks cannot share stops the run with numbers."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RecipeError, match="global_train_batch_size: 16 cannot be shared by 3 ranks"):
        load_recipe(DEMO)
    with pytest.raises(RecipeError, match="train_loader.lanes: 16 cannot be shared by 3 ranks; .*multiple of 3"):
        load_recipe(DEMO, ["global_train_batch_size=9"])


@pytest.mark.parametrize("name", ["nowhere.model", "package:no_such_package/x", "package:mistral_common/none.model"])
def test_missing_tokenizer(name: str) -> None:
    """A tokenizer that is not there, as a path or in a package, is named, with the way to get one."""
    with pytest.raises(RecipeError, match=r"tokenizer.name: .*(nowhere|no_such_package|none.model).*mistral_common"):
        tokenizer_path(name)


def test_mistake_stops_the_run_before_anything_is_loaded() -> None:
    """`python -m lacy_stream` answers a mistake at once, on one line, with exit code 2."""
    run = subprocess.run(
        [sys.executable, "-m", "lacy_stream", str(DEMO), "max_sq_len=3"], capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "error: max_sq_len: unknown key (value 3); the nearest known key is max_seq_len\n"
    imported = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lacy_stream", str(DEMO), "x"], capture_output=True, text=True
    ).stderr
    assert "lacy_stream.recipe" in imported
    assert not re.search(r"\| +(composer|torch|streaming|spacy)$", imported, re.MULTILINE)
