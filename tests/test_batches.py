"""The stream as the trainer sees it: order, completeness, resume, validation; with real worker processes."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from annotator import Annotator, FactClass
from lacy_stream.batches import PositionError, annotated_dataloader
from lacy_stream.pool import AnnotationPool
from lacy_stream.shards import Shards

SEQ_LEN, BATCH, LANES = 64, 4, 8


@pytest.fixture(scope="module")
def pool(tokenizer_path: Path):
    """Tokenises only: what order and resume need, without the parser's time."""
    with AnnotationPool(tokenizer_path, model=None, num_workers=2) as pool:
        yield pool


def train_loader(corpus: Path, pool: AnnotationPool, **options) -> DataLoader:
    settings = {"split": "train", "batch_size": BATCH, "max_seq_len": SEQ_LEN, "lanes": LANES, "shuffle": True}
    return annotated_dataloader(corpus, pool, **(settings | options))


def val_loader(corpus: Path, pool: AnnotationPool, **options) -> DataLoader:
    settings = {"split": "val", "batch_size": BATCH, "max_seq_len": SEQ_LEN, "lanes": LANES, "repeat": False}
    return annotated_dataloader(corpus, pool, **(settings | options))


def take(loader: DataLoader, batches: int) -> torch.Tensor:
    """Token ids of the next batches, [batches, B, T]."""
    return torch.stack([batch["input_ids"] for batch in islice(loader, batches)])


def expected_lane(corpus: Path, tokenizer_path: Path, lane: int, tokens: int) -> list[int]:
    """The first tokens of a lane, written down slowly: its documents, an end-of-document token behind each."""
    shards, annotator = Shards(corpus, split="train", shuffle=True), Annotator(tokenizer_path, model=None)
    joined: list[int] = []
    position = lane
    while len(joined) < tokens:
        joined += [*annotator.annotate([shards.document(position).text])[0].ids.tolist(), annotator.eos_id]
        position += LANES
    return joined[:tokens]


def test_rows_are_the_packed_documents_of_their_lanes(corpus: Path, pool: AnnotationPool, tokenizer_path: Path) -> None:
    """Row n is the next row of lane n mod lanes, over more than one epoch, and no token is lost or repeated."""
    batches = 160
    rows = take(train_loader(corpus, pool), batches).flatten(0, 1)
    per_lane = batches * BATCH // LANES
    for lane in range(LANES):
        expected = expected_lane(corpus, tokenizer_path, lane, per_lane * SEQ_LEN)
        assert rows[lane::LANES].flatten().tolist() == expected
    epoch_tokens = sum(
        len(a.ids) + 1
        for a in Annotator(tokenizer_path, model=None).annotate(
            [Shards(corpus, split="train").document(i).text for i in range(90)]
        )
    )
    assert rows.numel() > 1.2 * epoch_tokens, "the test must cross an epoch"


@pytest.mark.parametrize("workers", [1, 3])
def test_number_of_workers_does_not_show(
    corpus: Path, pool: AnnotationPool, tokenizer_path: Path, workers: int
) -> None:
    """1, 2 and 3 workers, and another depth of prefetching, give the same rows."""
    with AnnotationPool(tokenizer_path, model=None, num_workers=workers) as other:
        assert torch.equal(
            take(train_loader(corpus, other, prefetch_rows=workers * 30), 40), take(train_loader(corpus, pool), 40)
        )


def test_killed_workers_do_not_show(corpus: Path, pool: AnnotationPool, tokenizer_path: Path) -> None:
    """Every worker is killed at every fifth batch: the rows are those of an undisturbed run."""
    with AnnotationPool(tokenizer_path, model=None, num_workers=2) as other:
        rows = []
        for number, batch in enumerate(islice(train_loader(corpus, other), 20)):
            rows.append(batch["input_ids"])
            if number % 5 == 0:
                for worker in list(other._workers.values()):
                    worker.kill()
        assert other.stats().restarts > 2 and not other.quarantine
    assert torch.equal(torch.stack(rows), take(train_loader(corpus, pool), 20))


def test_classes_are_the_annotators(corpus: Path, tokenizer_path: Path, annotator: Annotator) -> None:
    """Each token of a batch carries the class that the annotator gives it; end-of-document is grammatical."""
    with AnnotationPool(tokenizer_path, num_workers=1) as parsing:
        batch = next(iter(val_loader(corpus, parsing, lanes=1)))
    text = Shards(corpus, split="val").document(0).text
    labelled = annotator.annotate([text])[0]
    length = min(SEQ_LEN, len(labelled))
    assert batch["input_ids"][0, :length].tolist() == labelled.ids[:length].tolist()
    assert batch["token_class"][0, :length].tolist() == labelled.classes[:length].tolist()
    assert (batch["token_class"] == FactClass.FACTUAL).any()
    ends = batch["input_ids"] == annotator.eos_id
    assert ends.any() and (batch["token_class"][ends] == FactClass.GRAMMATICAL).all()


def test_training_batches_are_full_and_plain(corpus: Path, pool: AnnotationPool) -> None:
    """A training batch has no padding and no mask, int64 ids, labels equal to them, and uint8 classes."""
    batch = next(iter(train_loader(corpus, pool)))
    assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items()} == {
        "input_ids": ((BATCH, SEQ_LEN), torch.int64),
        "labels": ((BATCH, SEQ_LEN), torch.int64),
        "token_class": ((BATCH, SEQ_LEN), torch.uint8),
    }
    assert torch.equal(batch["input_ids"], batch["labels"])


@pytest.mark.parametrize("position", [0, 1, 2, 7, 23, 61])
def test_resume_is_exact(corpus: Path, pool: AnnotationPool, position: int) -> None:
    """From a saved position, with rows prefetched behind it, the rows that would have followed; twice in a row."""
    whole = take(train_loader(corpus, pool), position + 12)
    loader = train_loader(corpus, pool)
    if position:
        take(loader, position)
    for _ in range(2):
        state = loader.dataset.state_dict(position * BATCH, True)
        loader = train_loader(corpus, pool, prefetch_rows=5)
        loader.dataset.load_state_dict(state)
        assert torch.equal(take(loader, 6), whole[position : position + 6])
        position += 6


def test_resumed_loader_goes_on_when_iterated_again(corpus: Path, pool: AnnotationPool) -> None:
    """Once a state was loaded, a new iteration goes on; a loader without one starts over, as DataLoaders do."""
    whole = take(train_loader(corpus, pool), 6)
    loader = train_loader(corpus, pool)
    assert torch.equal(take(loader, 2), whole[:2]) and torch.equal(take(loader, 2), whole[:2])
    state = loader.dataset.state_dict()
    loader.dataset.load_state_dict(state)
    assert torch.equal(take(loader, 2), whole[2:4]) and torch.equal(take(loader, 2), whole[4:6])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"max_seq_len": 32}, "max_seq_len"),
        ({"lanes": 4}, "lanes"),
        ({"shuffle_seed": 5}, "shuffle"),
        ({"split": "val"}, "data"),
    ],
)
def test_resume_of_another_stream_is_refused(corpus: Path, pool: AnnotationPool, change: dict, name: str) -> None:
    """A state of other data, another order or another packing is refused, and the difference is named."""
    state = train_loader(corpus, pool).dataset.state_dict()
    with pytest.raises(ValueError, match=f"another stream; .*{name}: "):
        train_loader(corpus, pool, **change).dataset.load_state_dict(state)
    with pytest.raises(ValueError, match="no position of this stream"):
        train_loader(corpus, pool).dataset.load_state_dict({"epoch": 1})


def test_two_ranks_see_the_same_global_batches(corpus: Path, pool: AnnotationPool, monkeypatch) -> None:
    """Each of two ranks takes every other row: together, batch for batch, the rows of one rank."""
    whole = take(train_loader(corpus, pool), 10)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr("lacy_stream.batches.dist.get_world_size", lambda: 2)
        monkeypatch.setattr("lacy_stream.batches.dist.get_global_rank", lambda rank=rank: rank)
        parts.append(take(train_loader(corpus, pool, batch_size=BATCH // 2), 10))
    assert torch.equal(torch.stack(parts, dim=2).flatten(1, 2), whole)


def test_validation_holds_every_document_once(corpus: Path, pool: AnnotationPool, tokenizer_path: Path) -> None:
    """A validation pass has all tokens of all documents, padding that is masked and unlabelled, and is the
    same at every pass."""
    loader = val_loader(corpus, pool)
    first, second = list(loader), list(loader)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a)
    annotator = Annotator(tokenizer_path, model=None)
    texts = [Shards(corpus, split="val").document(i).text for i in range(17)]
    expected = sum(len(labelled) + 1 for labelled in annotator.annotate(texts))
    labels = torch.cat([batch["labels"] for batch in first])
    mask = torch.cat([batch["attention_mask"] for batch in first])
    assert (labels != -100).sum() == expected
    assert torch.equal(labels != -100, mask == 1)
    assert (labels == annotator.eos_id).sum() == 17


def test_abandoned_iteration_leaves_the_queue(corpus: Path, tokenizer_path: Path) -> None:
    """An evaluation that stops after one batch takes the documents back that no worker has begun."""
    with AnnotationPool(tokenizer_path, num_workers=1) as parsing:
        loader = val_loader(corpus, parsing, split="train", lanes=1, prefetch_rows=10_000)
        for _ in islice(loader, 1):
            assert parsing.stats().queued > 0
        futures = [future for lane in loader.dataset._open for _, future in lane._pending]
        assert any(future.cancelled() for future in futures)


def test_same_documents_in_other_shards_are_another_stream(tmp_path: Path, pool: AnnotationPool) -> None:
    """The shuffle depends on the shards' sizes: a position is refused where the same rows were written anew."""
    from streaming import MDSWriter

    for name, limit in (("one", 1 << 20), ("other", 300)):
        with MDSWriter(out=str(tmp_path / name), columns={"text": "str"}, size_limit=limit) as writer:
            for number in range(20):
                writer.write({"text": f"Document {number} of twenty"})
    state = train_loader(tmp_path / "one", pool, split=None).dataset.state_dict()
    with pytest.raises(PositionError, match="data: '20 documents"):
        train_loader(tmp_path / "other", pool, split=None).dataset.load_state_dict(state)


def test_more_lanes_than_documents(corpus: Path, pool: AnnotationPool) -> None:
    """Lanes without a document are no problem: each document still comes once."""
    labels = torch.cat([batch["labels"] for batch in val_loader(corpus, pool, lanes=64)])
    assert (labels == Annotator(pool.tokenizer, model=None).eos_id).sum() == 17


def test_bad_settings_are_refused(corpus: Path, pool: AnnotationPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """DataLoader workers, a row of one token, and lanes that the ranks cannot share say what to do."""
    dataset = train_loader(corpus, pool).dataset
    with pytest.raises(RuntimeError, match="num_workers=0"):
        monkeypatch.setattr("lacy_stream.batches.get_worker_info", lambda: object())
        next(iter(dataset))
    with pytest.raises(ValueError, match="max_seq_len is 1"):
        train_loader(corpus, pool, max_seq_len=1)
    monkeypatch.setattr("lacy_stream.batches.dist.get_world_size", lambda: 3)
    with pytest.raises(ValueError, match=r"3 ranks; it can be shared by \[1, 2, 4, 8\]"):
        train_loader(corpus, pool)


def test_failure_of_a_worker_reaches_the_trainer(corpus: Path, tokenizer_path: Path) -> None:
    """When the parser cannot be loaded, the first batch fails with the reason; nothing waits for ever."""
    with AnnotationPool(tokenizer_path, model="en_core_web_nothing", num_workers=1) as broken:
        with pytest.raises(RuntimeError, match="en_core_web_nothing"):
            next(iter(train_loader(corpus, broken)))
