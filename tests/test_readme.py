"""The examples of the README and of docs/, run as they stand, and the links and names that these pages promise."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

import annotator
import lacy_stream
from annotator import FactClass
from annotator.spans import read_spans
from lacy_stream import CallMask, Targets
from lacy_stream.errors import UsageError
from lacy_stream.recipe import Annotation

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [
    (page.relative_to(ROOT).as_posix(), code)
    for page in PAGES
    for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
]


def run_example(marker: str, *, shorter: tuple[str, str] = ("", ""), **names: object) -> dict:
    """Run the one example that holds a marker, with these names defined and one duration replaced by a shorter one, and
    return all names that it leaves."""
    ((page, code),) = [(page, code) for page, code in EXAMPLES if marker in code]
    assert shorter[0] in code
    exec(compile(code.replace(*shorter), page, "exec"), names)
    return names


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: Path, tokenizer_path: Path) -> Path:
    """A folder with the files that the examples name."""
    shutil.copy(tokenizer_path, tmp_path / "tokenizer.model")
    shutil.copytree(corpus, tmp_path / "data" / "mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.process
def test_plugging_in(here: Path) -> None:
    """The Trainer example runs with a user's own GPT-2, trains, and calls 15% of the tokens."""
    from composer.models import HuggingFaceModel  # quick tests read this file, too, and need no Composer

    from lacy_stream.train.model import known_to_be_causal

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32_001, n_positions=256, n_embd=16, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=2
    )
    with known_to_be_causal():
        model = HuggingFaceModel(GPT2LMHeadModel(config), use_logits=True)
    before = model.model.transformer.wte.weight.detach().clone()
    trainer = run_example("StreamMonitor()", shorter=("20ba", "5ba"), model=model)["trainer"]
    assert trainer.state.timestamp.batch.value == 5
    assert not torch.equal(before, model.model.transformer.wte.weight)


@pytest.mark.parser
def test_annotator_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The annotator example prints the ids of the facts of its sentence."""
    run_example("Annotator(")
    assert re.match(r"\[[\d\s]+\]", capsys.readouterr().out)


def test_selector_of_ones_own() -> None:
    """The selector example calls the two hardest facts and ignores the easiest token."""
    names = run_example("def hardest_words")
    loss = torch.tensor([5.0, 1.0, 4.0, 9.0, 3.0])
    targets = Targets(loss, torch.tensor([1, 2, 1, 0, 1]), torch.ones(5, dtype=torch.bool), torch.rand(5))
    call, ignore = names["call_mask"].objective.method.select(targets, torch.tensor(2), torch.tensor(1))
    assert call.nonzero().flatten().tolist() == [0, 2] and ignore.nonzero().flatten().tolist() == [1]


def test_metrics_of_ones_own_model() -> None:
    """The example of validation losses makes metrics that leave <CALL> out of the softmax, but for the call loss."""
    total, call, rest = run_example("eval_metrics")["eval_metrics"]
    logits = torch.zeros(1, 20, 32_001)
    logits[..., 32_000] = 20
    for metric, loss in ((total, math.log(32_000)), (call, 20.0), (rest, math.log(32_000))):
        metric.update(logits, torch.arange(20)[None])
        assert metric.compute().item() == pytest.approx(loss, abs=1e-3)


def test_labeller_that_is_a_class() -> None:
    """The example of a labeller with a state gives spans of its text, and says what its version is."""
    labeller = run_example("class Substances")["Substances"]()
    text = "Dissolve sodium chloride in sulfuric acid."
    assert [text[start:end] for start, end in read_spans(labeller(text), text)] == ["sodium chloride", "sulfuric acid"]
    assert labeller.version


@pytest.mark.model
def test_model_of_ones_own() -> None:
    """The example of a model is trained by the call mask, on batches of the form that the page describes."""
    import composer

    model = run_example("class Bigrams")["Bigrams"](vocab_size=11)
    ids = torch.randint(10, (4, 16))
    batch = {"input_ids": ids, "labels": ids, "token_class": torch.full_like(ids, int(FactClass.FACTUAL)).byte()}
    before = model.head.weight.detach().clone()
    trainer = composer.Trainer(
        model=model,
        train_dataloader=[batch] * 2,
        algorithms=[CallMask(call_token_id=10)],
        optimizers=torch.optim.AdamW(model.parameters()),
        max_duration="2ba",
        device_train_microbatch_size=4,
        device="cpu",
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    assert not torch.equal(before, model.head.weight)


def test_remote_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/ray.md asks for workers of a cluster on a network, which is refused without a token, as the
    page says; and its YAML for KubeRay is a cluster whose head annotates nothing."""
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    open_pool = run_example("RemoteSettings(")["open_pool"]
    with pytest.raises(UsageError, match="'10.0.0.5:6379' is on a network"):
        open_pool()
    page = (ROOT / "docs" / "ray.md").read_text(encoding="utf-8")
    annotator_part, cluster, labeller_part = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    for part in (annotator_part, labeller_part):
        Annotation.model_validate(part["annotator"])
    head, (workers,) = cluster["spec"]["headGroupSpec"], cluster["spec"]["workerGroupSpecs"]
    assert cluster["kind"] == "RayCluster" and head["rayStartParams"]["num-cpus"] == "0"
    for group in (head, workers):
        (container,) = group["template"]["spec"]["containers"]
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in container["env"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None and cluster["spec"]["rayVersion"] == pinned[1]


def test_no_example_is_left_out() -> None:
    """Every Python example is one of those above, the labeller that test_labellers.py runs, one of the two loops of
    test_any_trainer.py, or the client of serve/test_guide.py."""
    tested = Path(__file__).read_text(encoding="utf-8")
    elsewhere = [
        "def formulas_and_quantities",
        "objective.begin_step(step",
        "class CallTrainer",
        "from openai import OpenAI",
    ]
    markers = [*re.findall(r'run_example\("([^"]+)"', tested), *elsewhere]
    assert [[marker in code for marker in markers].count(True) for _, code in EXAMPLES] == [1] * len(markers)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    """What a page links to is there, for readers of the repository; `make docs` checks the site."""
    text = re.sub(r"<!--.*?-->|```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    targets = {(page.parent / link).resolve().relative_to(ROOT).as_posix() for link in links}
    assert {target for target in targets if not (ROOT / target).exists()} == set()


def test_api_page_has_every_public_name() -> None:
    """The API reference lists the public names of both packages, each once, and no other."""
    listed = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    public = [f"{package.__name__}.{name}" for package in (annotator, lacy_stream) for name in package.__all__]
    assert sorted(listed) == sorted(public)
