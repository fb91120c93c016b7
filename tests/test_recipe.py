"""Recipes: all that ship are right, and what is wrong is named before anything is loaded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch
import yaml
from pydantic import Field, ValidationError
from transformers import AutoModelForCausalLM

from lacy_stream.objective.methods import NEEDS
from lacy_stream.recipe import (
    GPT2,
    HFCausalLM,
    Recipe,
    RecipeError,
    check_recipe,
    dump_recipe,
    load_recipe,
    tokenizer_path,
)
from lacy_stream.recipe_reference import reference
from lacy_stream.schema import Section, mistakes
from lacy_stream.stream.source import Source

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
DEMO = Path(__file__).parent.parent / "recipes" / "lacy_demo.yaml"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipe_is_right(path: Path) -> None:
    """Every recipe loads, names a tokenizer that is there, and survives being written and read again."""
    recipe = load_recipe(path)
    if path != DEMO:  # `make demo` trains its own
        assert tokenizer_path(recipe.tokenizer.name).is_file()
    assert check_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe


def differences(recipe: Recipe, base: Recipe) -> dict[str, object]:
    """The values of a recipe that are not those of another one, by their dotted keys."""

    def flat(values: dict[str, object], where: str = "") -> dict[str, object]:
        leaves: dict[str, object] = {}
        for key, value in values.items():
            leaves |= flat(value, f"{where}{key}.") if isinstance(value, dict) else {f"{where}{key}": value}
        return leaves

    before = flat(base.model_dump())
    return {key: value for key, value in flat(recipe.model_dump()).items() if before[key] != value}


METHOD, PARSER, STEPS_KEY = "algorithms.call_mask.method", "annotator.model", "max_duration"
DIFFERENT_FROM_LACY = {
    "baseline": {METHOD, PARSER, STEPS_KEY},
    "baseline_defer": {
        METHOD,
        PARSER,
        STEPS_KEY,
        "algorithms.call_mask.objective",
        "algorithms.call_mask.rank_calls_by",
    },
    "lacy_defer": {"algorithms.call_mask.objective", "algorithms.call_mask.rank_calls_by"},
    "lacy+ignore": {METHOD, STEPS_KEY},
    "lacy+ignorefacts": {METHOD, STEPS_KEY},
    "llm-judge": {METHOD, PARSER}
    | {f"{loader}.dataset.{key}" for loader in ("train_loader", "eval_loader") for key in ("local", "spans_column")},
    "loss-based": {METHOD, PARSER},
    "reference": {METHOD, PARSER, STEPS_KEY, "optimizer.lr"},
    "rho-1": {METHOD, PARSER, "algorithms.call_mask.reference"},
    "spacy": {METHOD},
    "spacy+refloss": {METHOD, "algorithms.call_mask.reference"},
}


@pytest.mark.parametrize(
    "path",
    [path for path in RECIPES if "extends" in path.read_text() and path.stem != "lacy_llama_350m"],
    ids=lambda path: path.stem,
)
def test_recipe_differs_from_its_base_only_in_what_makes_it(path: Path) -> None:
    """Runs of one size are comparable: a recipe has the values of its base, but for its name and its method's keys."""
    name, size = path.stem.rsplit("_", 1)
    base = yaml.safe_load(path.read_text())["extends"]
    assert base == f"lacy_{size}.yaml"
    different = differences(load_recipe(path), load_recipe(DEMO.with_name(base)))
    assert set(different) == {"run_name", "save_folder"} | DIFFERENT_FROM_LACY[name]


STEPS = {"baseline": 340_000, "lacy+ignorefacts": 440_000, "lacy+ignore": 460_000}


@pytest.mark.parametrize("method", NEEDS)
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
    mask, name = "algorithms.call_mask", f"{method}-defer-{size}"
    ours = {f"{mask}.objective": "defer", f"{mask}.rank_calls_by": "probability"}
    assert differences(defer, paper) == {"run_name": name, "save_folder": f"runs/{name}", **ours}


def test_reference_recipe() -> None:
    """Table 4's reference model: 1.27B, 2,540k steps at 1.5e-4, no calls."""
    recipe = load_recipe(DEMO.with_name("reference_1b.yaml"))
    assert (recipe.optimizer.lr, recipe.max_duration, recipe.model.d_model) == (1.5e-4, "2540000ba", 2048)
    assert recipe.algorithms.call_mask.method == "baseline"


@pytest.mark.model
@pytest.mark.parametrize(("name", "expected"), [("lacy_334m", 334e6), ("lacy_1b", 1.27e9)])
def test_model_sizes(name: str, expected: float) -> None:
    """The built models have 334M and 1.27B parameters within 1.5%. Embeddings are counted once, since they are tied,
    and with them the 127 rows that pad the vocabulary to a multiple of 128."""
    from lacy_stream.train.model import build_model

    recipe = load_recipe(DEMO.with_name(f"{name}.yaml"))
    with torch.device("meta"):
        model = build_model(recipe.model, max_seq_len=1024, call_token_id=32_000, eos_id=2)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(expected, rel=0.015)
    assert model.model.get_output_embeddings().weight.shape[0] == 32_128


@pytest.mark.model
def test_recipe_of_a_llama() -> None:
    """The Llama beside the paper's models has 345M parameters, 2,048 positions and as many tokens in a batch as the
    recipe that it extends; a model of another name replaces that of the base, and its other sections are merged."""
    from lacy_stream.train.hugging_face import read_config

    recipe, base = (load_recipe(DEMO.with_name(f"{name}.yaml")) for name in ("lacy_llama_350m", "lacy_334m"))
    assert isinstance(recipe.model, HFCausalLM)
    config = read_config(recipe.model, pieces=32_000, max_seq_len=recipe.max_seq_len)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.num_parameters() == pytest.approx(345e6, rel=0.01)
    assert (config.vocab_size, config.max_position_embeddings, config.hidden_act) == (32_128, 2048, "silu")
    tokens = [run.global_train_batch_size * run.max_seq_len for run in (recipe, base)]
    assert tokens[0] == tokens[1]
    assert (recipe.optimizer.weight_decay, recipe.train_loader) == (0.1, base.train_loader)
    assert recipe.algorithms.call_mask.objective == "defer" and recipe.callbacks == base.callbacks


def test_overrides_replace_values() -> None:
    """key.sub=value replaces one value, null removes a part, and the rest stays."""
    recipe = load_recipe(DEMO, ["train_loader.dataset.local=elsewhere", "optimizer.lr=1e-5", "eval_loader=null"])
    assert (recipe.train_loader.dataset.local, recipe.train_loader.dataset.split) == ("elsewhere", "train")
    assert (recipe.optimizer.lr, recipe.eval_loader) == (1e-5, None)


def test_streams() -> None:
    """Several streams by name, each with its own settings and weight, become the arguments of a corpus."""
    from lacy_stream.train.recipe_data import corpus_arguments

    streams = "{wiki: {local: w, split: train, proportion: 0.9}, code: {local: c, proportion: 0.1, annotate: false}}"
    recipe = load_recipe(DEMO, [f"train_loader.dataset={{streams: {streams}, epoch_size: 500, shuffle: true}}"])
    arguments = corpus_arguments(recipe.train_loader.dataset)
    assert arguments["data"] == {
        "wiki": Source(local="w", split="train", proportion=0.9),
        "code": Source(local="c", proportion=0.1, annotate=False),
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
        ("max_seq_len=long", "max_seq_len: 'long' must be a valid integer"),
        ("max_seq_len=64.5", "max_seq_len: 64.5 must be a valid integer"),
        ("max_seq_len=true", "max_seq_len: True must be a valid integer"),
        ("optimizer.lr=fast", "optimizer.lr: 'fast' must be a valid number"),
        ("progress_bar=maybe", "progress_bar: 'maybe' must be a valid boolean"),
        ("run_name=[a]", r"run_name: \['a'\] must be a valid string"),
        ("max_seq_len=null", "max_seq_len: null must be a valid integer"),
        ("model=null", "model: null is not a mapping"),
        ("model.name=gpt3", "model.name: 'gpt3' must be 'gpt2'"),
        ("model={d_model: 8}", "model.name: missing, and it has no default"),
        ("model={name: gpt2, d_model: 8, n_heads: 2}", "model.n_layers: missing, and it has no default"),
        ("model.d_modle=8", r"model.d_modle: unknown key \(value 8\); the nearest known key is model.d_model$"),
        ("model=gpt2", "model: 'gpt2' is not a mapping"),
        ("train_loader.dataset=[1]", "train_loader.dataset: .* is not a mapping"),
        ("max_seq_len=1", "max_seq_len: 1 must be greater than or equal to 2"),
        ("model.n_layers=0", "model.n_layers: 0 must be greater than 0"),
        ("model.d_model=190", "model.d_model: 190 is not a multiple of n_heads, 4"),
        ("optimizer.lr=0", "optimizer.lr: 0 must be greater than 0"),
        ("optimizer.lr=.nan", "optimizer.lr: nan must be a finite number"),
        ("optimizer.betas=[0.9]", r"optimizer.betas.1: missing"),
        ("optimizer.name=adam", "optimizer.name: 'adam' is unknown; the nearest known name is adamw"),
        ("optimizer.weigth_decay=0", "optimizer.weigth_decay: .*nearest known key is optimizer.weight_decay"),
        ("optimizer={name: DecoupledAdmW, lr: 1}", "optimizer.name: .* nearest known name is DecoupledAdamW"),
        (
            "scheduler={name: cosine_annealing_warmup}",
            "scheduler.name: .*nearest known name is cosine_annealing_with_warmup",
        ),
        ("scheduler={name: cosine_annealing_with_warmup, t_warmup: 9tok}", "scheduler.t_warmup: '9tok' is counted in"),
        (
            "callbacks.OptimizerMontor={}",
            "callbacks.OptimizerMontor: .*nearest known key is callbacks.OptimizerMonitor",
        ),
        ("loggers.mlfow={}", "loggers.mlfow: .*nearest known key is loggers.mlflow"),
        ("algorithms.EMAA={}", "algorithms.EMAA: .*nearest known key is algorithms.EMA"),
        ("callbacks.optimizer_monitor=3", "callbacks.optimizer_monitor: 3 is not a mapping of arguments"),
        ("load_ignore_keys=state", "load_ignore_keys: 'state' must be a valid list"),
        ("max_duration=2ep", "max_duration: '2ep' is not a duration"),
        ("max_duration=100", "max_duration: 100 is not a duration"),
        ("eval_interval=often", "eval_interval: 'often' is not a duration"),
        ("precision=fp64", "precision: 'fp64' must be 'amp_bf16', 'amp_fp16' or 'fp32'"),
        ("device_train_microbatch_size=0", "device_train_microbatch_size: 0 must"),
        ("device_train_microbatch_size=all", "device_train_microbatch_size: 'all' is neither"),
        ("algorithms.call_mask.call_fraction=1", "algorithms.call_mask.call_fraction: 1.0 must lie between 0 and 1"),
        ("algorithms.call_mask.call_fraction=0", "algorithms.call_mask.call_fraction: 0.0 .*method: baseline"),
        (
            "algorithms.call_mask.method=lac",
            "algorithms.call_mask.method: 'lac' must be 'baseline', .* or 'lacy.ignore'",
        ),
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
        ("annotator.engine=fast", "annotator.engine: 'fast' must be 'auto'"),
        ("annotator.num_workers=0", "annotator.num_workers: 0, and no remote workers; give 1 or more, or a section"),
        ("annotator.num_workers=-1", "annotator.num_workers: -1 must be greater than or equal to 0"),
        ("annotator.remote={num_workers: 4}", "annotator.remote.address: missing"),
        ("annotator.remote={address: head, num_workers: 4}", "remote.address: 'head' is neither auto, HOST:PORT nor"),
        ("annotator.remote={address: 'a:10001', num_workers: 4}", "remote.address: 'a:10001' has the port of Ray Cl"),
        ("annotator.remote={address: auto, num_workers: 0}", "annotator.remote.num_workers: 0 must be greater than 0"),
        ("annotator.remote={address: auto, num_workers: 4, wait_limit: 5}", "nearest known key is .*wait_limit_s"),
        ("run_name='${oc.env:HOME}'", "interpolation"),
        ("optimizer.lr=.inf", "optimizer.lr: inf must be a finite number"),
        ("optimizer.weight_decay=.nan", "optimizer.weight_decay: nan must be a finite number"),
        ("seed=5000000000", "seed: 5000000000 must be less than 4294967296"),
        ("max_duration=0ba", "max_duration: '0ba' must be greater than 0"),
        ("eval_interval=0ba", "eval_interval: '0ba' must be greater than 0"),
        ("max_duration=4096tok", "scheduler.t_warmup: '100ba' is counted in another unit than max_duration, '4096tok'"),
        ("loggers.wandb={project: x}", "loggers.wandb: the package wandb is not installed: pip install wandb"),
        ('loggers.file={filename: "{nope}/x.txt"}', "loggers.file.filename: .* has an unknown placeholder {nope}"),
        ("eval_loader.dataset.download_timeout=-1", "eval_loader.dataset.download_timeout: -1 must be greater"),
        (
            "eval_loader.dataset.shuffle_seed=-1",
            "eval_loader.dataset.shuffle_seed: -1 must be greater than or equal to 0",
        ),
        ("call_fraction=0.2", "call_fraction: unknown key .*nearest known key is algorithms.call_mask.call_fraction"),
        ("train_loader.num_workers=4", "train_loader.num_workers: .*nearest known key is annotator.num_workers"),
        ("optimizer.betas=0.9", "optimizer.betas: 0.9 must be a valid tuple"),
        ("annotator.num_workers=100000", "annotator.num_workers: 100000 must be less than or equal to 1024"),
        ("eval_subset_num_batches=-5", "eval_subset_num_batches: -5 must be at least 1, or -1"),
        ("autoresume=true", "autoresume: true needs .* save_overwrite: false"),
        ("load_path=nowhere.pt", "load_path: there is no file 'nowhere.pt'"),
        ("zzz=1", "zzz: unknown key .*known are run_name, seed"),
        ("train_loader.dataset={}", "train_loader.dataset.local: missing; .* by name in streams"),
        ("train_loader.dataset={streams: {a: {local: x, shuffle: true}}}", "streams.a.shuffle: unknown key"),
        ("train_loader.dataset={streams: {a: x}}", "streams.a: 'x' is not a mapping"),
        ("train_loader.dataset={streams: {a: {split: x}}}", "streams.a.local: missing"),
        (
            "train_loader.dataset={streams: {a: {local: x, choose: 1, repeat: 2}}}",
            "streams.a.choose: repeat and choose exclude",
        ),
        (
            "train_loader.dataset={streams: {a: {local: x, repeat: -2}}}",
            "streams.a.repeat: -2 must be greater than or equal to 0",
        ),
        ("train_loader.dataset.streams={a: {local: x}}", "dataset.local: belongs to each of the streams a, not beside"),
        ("annotator.label_cache_limit_gb=0", "annotator.label_cache_limit_gb: 0 must be greater than 0"),
        ("just_a_word", "override 'just_a_word' is not of the form key.sub=value"),
        ("=5", "override '=5' is not of the form key.sub=value"),
        ("optimizer..lr=5", "override 'optimizer..lr=5' is not of the form"),
        ("optimizer[0=5", "override .* is not of the form"),
        ("optimizer.betas.0=", "optimizer.betas.0: null must be a valid number"),
        (
            "optimizer.betas.5=0.9",
            "override .*: optimizer.betas is no mapping with the key '5'. .* optimizer.betas=value",
        ),
        ("optimizer.betas.x=0.9", "override .*: optimizer.betas is no mapping with the key 'x'"),
        ("load_path=None", "load_path: 'None' would be taken for a name; write null for nothing"),
        ("loggers={wandb: {tags: [None]}}", "loggers.wandb.tags.0: 'None' would be taken for a name"),
        ("save_folder=$HOME/run", "save_folder: '.HOME/run' has .HOME, and variables of the environment are not read"),
        ("save_folder=~nobody-here/run", "save_folder: '~nobody-here/run': there is no such user"),
        ("optimizer.betas=[.nan, 0.9]", "optimizer.betas.0: nan must be a finite number"),
        ("optimizer={name: DecoupledAdamW, lr: 1, eps: .inf}", "optimizer.eps: inf must be a finite number"),
        ("algorithms.call_mask.call_fraction=.nan", "algorithms.call_mask.call_fraction: nan must be a finite"),
        (
            "train_loader.dataset={streams: {a: {local: x, proportion: .nan}}}",
            "streams.a.proportion: nan must be a finite number",
        ),
        ("dist_timeout=.inf", "dist_timeout: inf must be a finite number"),
    ],
)
def test_mistake_is_named(override: str, message: str) -> None:
    """An unknown key, a wrong type or an impossible value is an error with the key, the value and the way out."""
    with pytest.raises(RecipeError, match=message):
        load_recipe(DEMO, [override])


def test_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` at the beginning of a path is the user's folder, as in a shell, wherever the path stands; elsewhere it is a
    character."""
    monkeypatch.setenv("HOME", "/home/ada")
    data = "train_loader.dataset={streams: {a: {local: ~/data}}}"
    recipe = load_recipe(DEMO, [data, "save_folder=~/run", "report_folder=a~b"])
    streams = recipe.train_loader.dataset.streams or {}
    assert (recipe.save_folder, recipe.report_folder) == ("/home/ada/run", "a~b")
    assert streams["a"].local == "/home/ada/data"


def test_all_mistakes_are_named_at_once() -> None:
    """A recipe with several mistakes is told all of them, a line each, the misspelt keys first."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(DEMO, ["optimizer={l: 1e-3}", "model.d_model=0", "algorithms.call_mask.method=x"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 4 and lines[0].startswith("optimizer.l: unknown key")
    assert [line.split(":")[0] for line in lines[1:]] == [
        "model.d_model",
        "optimizer.lr",
        "algorithms.call_mask.method",
    ]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("run_name", None),
        ("model.vocab_size", None),
        ("annotator", {"model": None}),
        ("annotator.model", None),
        ("annotator.labeller", None),
        ("annotator.num_workers", None),
        ("annotator.label_cache", None),
        ("train_loader.dataset.remote", None),
        ("train_loader.dataset.split", None),
        ("train_loader.dataset.tokens_column", None),
        ("train_loader.dataset.spans_column", None),
        ("train_loader.dataset.streams", None),
        ("train_loader.dataset.epoch_size", None),
        ("train_loader.dataset.proportion", None),
        ("train_loader.dataset.repeat", None),
        ("train_loader.dataset.choose", None),
        ("eval_loader", None),
        ("scheduler", {"t_warmup": "0ba"}),
        ("algorithms", {"call_mask": {"method": "baseline"}}),
        ("algorithms.call_mask", {"method": "baseline"}),
        ("algorithms.call_mask.reference", None),
        ("algorithms.gradient_clipping", None),
        ("callbacks", {"nan_monitor": None}),
        ("callbacks.nan_monitor", None),
        ("compile_config", None),
        ("profiler", None),
        ("callbacks.speed_monitor", None),
        ("callbacks.lr_monitor", None),
        ("callbacks.memory_monitor", None),
        ("callbacks.runtime_estimator", None),
        ("loggers", {}),
        ("loggers.tensorboard", None),
        ("loggers.wandb", None),
        ("loggers.file", None),
        ("eval_mask_from", None),
        ("fsdp_config", None),
        ("save_folder", None),
        ("report_folder", None),
        ("load_path", None),
    ],
)
def test_null_turns_off(key: str, expected: object) -> None:
    """``key=null`` turns off what can be off, and is the same as the values that say so."""
    baseline = ["algorithms.call_mask.method=baseline"] if key.startswith("annotator") else []
    off = load_recipe(DEMO, [*baseline, f"{key}=null"])
    assert off == load_recipe(DEMO, [*baseline, f"{key}={'null' if expected is None else json.dumps(expected)}"])
    value = off
    for part in key.split("."):
        value = getattr(value, part)
    assert value is None if expected is None else value == type(value).model_validate(expected)


def test_recipe_extends_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe takes the values of its base, found from its own folder: mappings are merged, lists and null replace,
    and overrides come last. What is stored in checkpoints is the result."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.yaml").write_text(DEMO.read_text())
    path = tmp_path / "sub" / "mine.yaml"
    path.write_text(
        "extends: ../base.yaml\nrun_name: mine\noptimizer: {betas: [0.8, 0.9]}\neval_loader: null\nloggers: null\n"
    )
    monkeypatch.chdir("/")
    recipe, base = load_recipe(path, ["optimizer.weight_decay=0"]), load_recipe(DEMO)
    assert (recipe.run_name, recipe.optimizer.betas, recipe.optimizer.weight_decay) == ("mine", (0.8, 0.9), 0)
    assert (recipe.eval_loader, recipe.loggers.file, recipe.optimizer.lr) == (None, None, base.optimizer.lr)
    assert recipe.train_loader == base.train_loader
    assert "extends" not in dump_recipe(recipe) and check_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("nowhere.yaml", "extends: 'nowhere.yaml' in .*mine.yaml': there is no file .*nowhere.yaml"),
        ("other.yaml", "extends: 'other.yaml' in .*mine.yaml' extends 'mine.yaml' itself; name a complete recipe"),
        ("mine.yaml", "extends: 'mine.yaml' in .*mine.yaml' extends 'mine.yaml' itself"),
        ("list.yaml", "list.yaml' is not a mapping"),
        ("[a]", r"extends: \['a'\] in .*mine.yaml': there is no file"),
        (".", "extends: '.' in .*mine.yaml': there is no file"),
    ],
)
def test_base_that_cannot_be_extended(tmp_path: Path, base: str, message: str) -> None:
    """A base that is missing, that is no recipe, or that extends another one is named."""
    (tmp_path / "mine.yaml").write_text(f"extends: {base}\n")
    (tmp_path / "other.yaml").write_text("extends: mine.yaml\n")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "mine.yaml")


@pytest.mark.process
def test_python_runs_a_recipe_that_extends_another(tmp_path: Path) -> None:
    """``python recipe.yaml``, which is what `composer recipe.yaml` runs, finds the base from any working directory."""
    command = [sys.executable, DEMO.with_name("spacy_334m.yaml"), "train_loader.lanes=0"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.stderr == "error: train_loader.lanes: 0 must be greater than 0\n"


def test_recipe_of_another_machine_can_be_read() -> None:
    """What keeps a recipe from running here does not keep its checkpoint from being read here."""
    values = yaml.safe_load(DEMO.read_text()) | {"load_path": "/nowhere/else.pt", "loggers": {"wandb": {}}}
    assert check_recipe(values).load_path == "/nowhere/else.pt"


def test_recipe_reference_is_current() -> None:
    """docs/recipe.md is what `make recipe-docs` writes, and explains every key."""
    assert (DEMO.parent.parent / "docs" / "recipe.md").read_text() == reference()


def test_second_family_of_models() -> None:
    """A second family is a second class with a `name`: its keys are checked as its own, and mistakes are named the same
    way."""

    class Llama(Section):
        """Another family."""

        name: Literal["llama"]
        width: int

    class Run(Section):
        """A run of one of two families."""

        model: Annotated[GPT2 | Llama, Field(discriminator="name")]

    def told(model: dict[str, object]) -> list[str]:
        with pytest.raises(ValidationError) as caught:
            Run.model_validate({"model": model})
        return mistakes(caught.value, Run)

    assert Run.model_validate({"model": {"name": "llama", "width": 3}}).model == Llama(name="llama", width=3)
    assert told({"name": "llama"}) == ["model.width: missing, and it has no default"]
    assert told({"name": "bert"}) == ["model.name: 'bert' must be 'gpt2', 'llama'"]
    assert told({"name": "llama", "width": 3, "widht": 3}) == [
        "model.widht: unknown key (value 3); the nearest known key is model.width"
    ]


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


@pytest.mark.process
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
