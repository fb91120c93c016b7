"""The stream as the trainer sees it: order, completeness, resume, validation.

Most tests have workers in threads, which annotate as processes do: test_local_worker.py has the processes.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from streaming import MDSWriter
from torch.utils.data import DataLoader
from workers import ThreadWorkers, WordWorkers

from annotator import Annotator, AnnotatorSettings, FactClass
from lacy_stream.stream.batches import PositionError, annotated_dataloader
from lacy_stream.stream.corpus import Source, open_corpus
from lacy_stream.stream.pool import AnnotationPool
from lacy_stream.stream.workers.protocol import WorkerCannotStart

SEQ_LEN, BATCH, LANES = 64, 4, 8
EPOCH_BATCHES = 100  # about; see test_rows_are_the_packed_documents_of_their_lanes


@pytest.fixture(scope="module")
def pool(tokenizer_path: Path):
    """Tokenises only: what order and resume need, without the parser's time."""
    settings = AnnotatorSettings(tokenizer_path, model=None)
    with AnnotationPool(settings, num_workers=2, start_worker=ThreadWorkers()) as pool:
        yield pool


@pytest.fixture
def parsing(tokenizer_path: Path, annotator: Annotator) -> Iterator[AnnotationPool]:
    """Labels facts."""
    settings = AnnotatorSettings(tokenizer_path)
    with AnnotationPool(settings, num_workers=1, start_worker=ThreadWorkers(annotator)) as pool:
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
    """The first tokens of a lane, written down slowly: its documents, an end-of-document token after each."""
    documents, annotator = open_corpus(corpus, split="train", shuffle=True), Annotator(tokenizer_path, model=None)
    joined: list[int] = []
    position = lane
    while len(joined) < tokens:
        joined += [*annotator.annotate([documents.document(position).text])[0].ids.tolist(), annotator.eos_id]
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
            [open_corpus(corpus, split="train").document(i).text for i in range(90)]
        )
    )
    assert rows.numel() > 1.2 * epoch_tokens, "the test must cross an epoch"


def test_position_is_that_of_the_batches_that_were_taken(corpus: Path, pool: AnnotationPool) -> None:
    """However far the thread is ahead, a position that is saved points after the last batch that the trainer has. Once
    it was resumed, the next iteration of the same loader continues there."""
    loader = train_loader(corpus, pool)
    batches = iter(loader)
    first = [next(batches)["input_ids"] for _ in range(3)]
    end = time.monotonic() + 20
    while loader.dataset._rows < 5 * BATCH and time.monotonic() < end:
        time.sleep(0.01)
    assert loader.dataset._rows == 5 * BATCH, "one batch is ready, and the thread has made another"
    state = loader.state_dict()
    assert json.loads(state["lacy_stream"])["rows"] == loader.dataset.stats().rows == 3 * BATCH
    batches.close()
    other = train_loader(corpus, pool)
    other.load_state_dict(state)
    taken = iter(other)
    second = [next(taken)["input_ids"] for _ in range(2)]
    taken.close()
    third = [batch["input_ids"] for batch in islice(other, 2)]
    assert torch.equal(torch.stack(first + second + third), take(train_loader(corpus, pool), 7))


def test_only_the_wait_of_the_trainer_is_counted(corpus: Path, tokenizer_path: Path) -> None:
    """Batches that were made while the trainer was busy cost it no time; the first one does."""
    slow = ThreadWorkers(longest_pause_s=0.05)
    with AnnotationPool(AnnotatorSettings(tokenizer_path, None), num_workers=1, start_worker=slow) as slow_pool:
        loader = train_loader(corpus, slow_pool)
        batches = iter(loader)
        next(batches)
        waited = loader.dataset.stats().wait_s
        end = time.monotonic() + 60
        while loader.dataset._rows < 3 * BATCH and time.monotonic() < end:
            time.sleep(0.01)
        assert waited > 0.01 and loader.dataset.stats().wait_s == waited
        next(batches)
        assert loader.dataset.stats().wait_s - waited < 0.05


def test_number_of_workers_does_not_show(corpus: Path, tokenizer_path: Path, annotator: Annotator) -> None:
    """An epoch's rows, labels included, are the same from 1, 2 and 4 workers whose answers come in any order."""
    hashes = set()
    for count in (1, 2, 4):
        digest = hashlib.sha256()
        workers = ThreadWorkers(annotator, longest_pause_s=0.05, seed=count)
        with AnnotationPool(AnnotatorSettings(tokenizer_path), num_workers=count, start_worker=workers) as pool:
            for batch in islice(train_loader(corpus, pool, prefetch_rows=count * 20), EPOCH_BATCHES):
                digest.update(batch["input_ids"].numpy().tobytes() + batch["token_class"].numpy().tobytes())
        hashes.add(digest.hexdigest())
    assert len(hashes) == 1


def kill_one(pool: AnnotationPool) -> None:
    for worker in list(pool._workers.values()):
        with suppress(ValueError):  # it is being replaced
            if worker.is_alive():
                worker.kill()
                return


@pytest.mark.process
def test_killed_workers_do_not_show(corpus: Path, pool: AnnotationPool, tokenizer_path: Path) -> None:
    """A worker is killed at every fifth batch: the rows are those of an undisturbed run."""
    with AnnotationPool(AnnotatorSettings(tokenizer_path, model=None), num_workers=2) as other:
        rows = []
        for number, batch in enumerate(islice(train_loader(corpus, other), 20)):
            rows.append(batch["input_ids"])
            if number % 5 == 0:
                # A document that was held by two dead workers would be quarantined, and rightly so: what the last one
                # held is done by now, and only one is killed, since the loader may just have submitted a document.
                while (stats := other.stats()).queued or stats.in_flight:
                    time.sleep(0.01)
                kill_one(other)
        # One that dies without work is missed when there is work again, which may be after the last batch.
        assert not other.quarantine
        assert other.report.counts()["worker_restarted"] > 1
    assert torch.equal(torch.stack(rows), take(train_loader(corpus, pool), 20))


def test_classes_are_the_annotators(corpus: Path, parsing: AnnotationPool, annotator: Annotator) -> None:
    """Each token of a batch carries the class that the annotator gives it; end-of-document is grammatical."""
    batch = next(iter(val_loader(corpus, parsing, lanes=1)))
    text = open_corpus(corpus, split="val").document(0).text
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


def test_resume_is_exact_at_every_batch(corpus: Path, pool: AnnotationPool) -> None:
    """From the position after each batch of an epoch and the first of the next, with rows prefetched beyond it, come
    the rows that would have followed; and again from where that run was stopped."""
    loader = train_loader(corpus, pool)
    whole, states = [], [loader.dataset.state_dict()]
    for batch in islice(loader, EPOCH_BATCHES + 8):
        whole.append(batch["input_ids"])
        states.append(loader.dataset.state_dict())
    loaders = [train_loader(corpus, pool, prefetch_rows=rows) for rows in (1, 2, 7, 30, 60)]
    for position in range(EPOCH_BATCHES + 3):
        state = states[position]
        for start in (position, position + 2):
            resumed = loaders[(position + start) % len(loaders)]
            resumed.dataset.load_state_dict(state)
            assert torch.equal(take(resumed, 2), torch.stack(whole[start : start + 2])), f"batch {start}"
            state = resumed.dataset.state_dict()
        assert state == states[position + 4], "a resumed stream stands where the other one stood"


def test_position_while_a_worker_restarts(corpus: Path, tokenizer_path: Path, pool: AnnotationPool) -> None:
    """A position saved at the moment in which every worker is dead is the right one."""
    whole = take(train_loader(corpus, pool), 9)
    settings = AnnotatorSettings(tokenizer_path, model=None)
    with AnnotationPool(settings, num_workers=2, start_worker=ThreadWorkers()) as other:
        loader = train_loader(corpus, other)
        rows = iter(loader)
        first = [next(rows)["input_ids"] for _ in range(3)]
        for worker in list(other._workers.values()):
            worker.kill()
        state = loader.dataset.state_dict()
        first += [next(rows)["input_ids"] for _ in range(3)]
    resumed = train_loader(corpus, pool)
    resumed.dataset.load_state_dict(state)
    assert torch.equal(torch.stack(first), whole[:6]) and torch.equal(take(resumed, 6), whole[3:9])


def test_resumed_loader_goes_on_when_iterated_again(corpus: Path, pool: AnnotationPool) -> None:
    """Once a state was loaded, a new iteration continues; a loader without one starts over, as DataLoaders do."""
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


def test_resume_with_another_annotator_is_refused_by_name(
    corpus: Path, pool: AnnotationPool, parsing: AnnotationPool
) -> None:
    """A parser or a tokenizer that was changed is named; `accept_changes` continues at the position."""
    loader = train_loader(corpus, pool)
    take(loader, 3)
    state = loader.dataset.state_dict()
    with pytest.raises(PositionError, match="model: None in the checkpoint, 'en_core_web_sm.*accept_changes"):
        train_loader(corpus, parsing).dataset.load_state_dict(state)
    changed = train_loader(corpus, parsing, accept_changes=True)
    changed.dataset.load_state_dict(state)
    assert torch.equal(take(changed, 2), take(train_loader(corpus, pool), 5)[3:])
    saved = json.loads(state["lacy_stream"])
    for name in ("tokenizer", "data", "shuffle"):
        other = saved | {"identity": saved["identity"] | {name: "another"}}
        with pytest.raises(PositionError, match=f"another stream; {name}: 'another' in the checkpoint"):
            train_loader(corpus, pool).dataset.load_state_dict({"lacy_stream": json.dumps(other)})
    with pytest.raises(PositionError, match="a cursor for each lane"):
        train_loader(corpus, pool, lanes=4, accept_changes=True).dataset.load_state_dict(state)


def test_ranks_that_cannot_share_a_position(corpus: Path, pool: AnnotationPool, monkeypatch) -> None:
    """A number of ranks that does not divide the saved rows is refused, and those that do are named."""
    loader = train_loader(corpus, pool, batch_size=6)
    take(loader, 1)
    state = loader.dataset.state_dict()
    monkeypatch.setattr("lacy_stream.stream.batches.dist.get_world_size", lambda: 4)
    message = r"row 6, which 4 ranks cannot share; use one of these numbers of ranks: \[1, 2\]"
    with pytest.raises(PositionError, match=message):
        train_loader(corpus, pool).dataset.load_state_dict(state)


def test_two_ranks_see_the_same_global_batches(corpus: Path, pool: AnnotationPool, monkeypatch) -> None:
    """Each of two ranks takes every other row: together, batch for batch, the rows of one rank."""
    whole = take(train_loader(corpus, pool), 10)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr("lacy_stream.stream.batches.dist.get_world_size", lambda: 2)
        monkeypatch.setattr("lacy_stream.stream.batches.dist.get_global_rank", lambda rank=rank: rank)
        parts.append(take(train_loader(corpus, pool, batch_size=BATCH // 2), 10))
    assert torch.equal(torch.stack(parts, dim=2).flatten(1, 2), whole)


def test_validation_holds_every_document_once(corpus: Path, pool: AnnotationPool, tokenizer_path: Path) -> None:
    """A validation pass has all tokens of all documents, padding that is masked and unlabelled, and is the
    same at every pass."""
    loader = val_loader(corpus, pool)
    first, second = list(loader), list(loader)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a)
    annotator = Annotator(tokenizer_path, model=None)
    texts = [open_corpus(corpus, split="val").document(i).text for i in range(17)]
    expected = sum(len(labelled) + 1 for labelled in annotator.annotate(texts))
    labels = torch.cat([batch["labels"] for batch in first])
    mask = torch.cat([batch["attention_mask"] for batch in first])
    assert (labels != -100).sum() == expected
    assert torch.equal(labels != -100, mask == 1)
    assert (labels == annotator.eos_id).sum() == 17


def test_abandoned_iteration_leaves_the_queue(corpus: Path, tokenizer_path: Path) -> None:
    """An evaluation that stops after one batch takes the documents back that no worker has begun."""
    settings = AnnotatorSettings(tokenizer_path, model=None)
    with AnnotationPool(settings, num_workers=1, start_worker=ThreadWorkers(longest_pause_s=0.5)) as slow:
        loader = val_loader(corpus, slow, split="train", lanes=1, prefetch_rows=10_000)
        for _ in islice(loader, 1):
            assert slow.stats().queued > 0
        futures = [future for lane in loader.dataset._open for *_, future in lane._pending]
        assert any(future.cancelled() for future in futures)


def test_same_documents_in_other_shards_are_another_stream(tmp_path: Path, pool: AnnotationPool) -> None:
    """The shuffle depends on the shards' sizes: a position is refused if the same rows were written again."""
    from streaming import MDSWriter

    for name, limit in (("one", 1 << 20), ("other", 300)):
        with MDSWriter(out=str(tmp_path / name), columns={"text": "str"}, size_limit=limit) as writer:
            for number in range(20):
                writer.write({"text": f"Document {number} of twenty"})
    state = train_loader(tmp_path / "one", pool, split=None).dataset.state_dict()
    with pytest.raises(PositionError, match="data: '20 of 20 documents"):
        train_loader(tmp_path / "other", pool, split=None).dataset.load_state_dict(state)


def test_more_lanes_than_documents(corpus: Path, pool: AnnotationPool) -> None:
    """Lanes without a document are no problem: each document still comes once."""
    labels = torch.cat([batch["labels"] for batch in val_loader(corpus, pool, lanes=64)])
    assert (labels == Annotator(pool.settings.tokenizer, model=None).eos_id).sum() == 17


def test_wait_is_what_the_trainer_waited(corpus: Path, tokenizer_path: Path) -> None:
    """While the only worker stands still for a second the trainer waits for annotation, and the counter says how
    long, to a tenth; a trainer that is slow itself does not count."""
    workers, delay_s = ThreadWorkers(), 1.0
    with AnnotationPool(AnnotatorSettings(tokenizer_path, model=None), num_workers=1, start_worker=workers) as pool:
        loader = train_loader(corpus, pool, prefetch_rows=1)
        rows = iter(loader)
        next(rows)
        before, waited = loader.dataset.stats(), 0.0
        workers.gate.clear()
        threading.Timer(delay_s, workers.gate.set).start()
        while waited < 0.9 * delay_s:
            start = time.perf_counter()
            next(rows)
            waited += time.perf_counter() - start
        after = loader.dataset.stats()
        assert after.wait_s - before.wait_s == pytest.approx(waited, rel=0.1)
        assert after.annotation_s - before.annotation_s > 0.8 * waited
        time.sleep(0.2)  # the thread that works ahead may submit documents, but nobody waits
        now = loader.dataset.stats()
        assert (now.rows, now.wait_s) == (after.rows, after.wait_s)


def test_slow_trainer_does_not_fill_the_memory(corpus: Path, pool: AnnotationPool) -> None:
    """However long the trainer takes, no more than the set number of rows is kept ahead of it."""
    loader = train_loader(corpus, pool, prefetch_rows=16)
    ahead = []
    for _ in islice(loader, 12):
        time.sleep(0.05)
        dataset = loader.dataset
        buffered = [lane._packer.buffered + lane._pending_tokens for lane in dataset._open]
        ahead.append(sum(buffered))
    longest = max(len(document.text) for document in map(open_corpus(corpus, split="train").document, range(90)))
    assert max(ahead) < 16 * SEQ_LEN + LANES * longest // 2 and pool.stats().queued == 0


def test_rows_of_token_ids_are_kept(tmp_path: Path, parsing: AnnotationPool, annotator: Annotator) -> None:
    """LLM Foundry's pre-tokenised rows of the right length come out as they are, labelled as the documents in them."""
    from streaming import MDSWriter

    texts = [
        f"Ada Lovelace met Charles Babbage in {1800 + n}. She wrote {n} notes about his engine." for n in range(90)
    ]
    stream = np.concatenate([[*labelled.ids, annotator.eos_id] for labelled in annotator.annotate(texts)])
    rows = stream[: len(stream) // SEQ_LEN * SEQ_LEN].reshape(-1, SEQ_LEN)
    with MDSWriter(out=str(tmp_path / "data"), columns={"tokens": "bytes"}) as writer:
        for row in rows:
            writer.write({"tokens": row.astype(np.int64).tobytes()})
    batches = list(val_loader(tmp_path / "data", parsing, split=None, tokens_column="tokens", lanes=4))
    got = torch.cat([batch["input_ids"] for batch in batches])[: len(rows)]
    classes = torch.cat([batch["token_class"] for batch in batches])[: len(rows)]
    order = [n for lane_rows in zip_longest(*(range(lane, len(rows), 4) for lane in range(4))) for n in lane_rows]
    order = [n for n in order if n is not None]
    assert got.tolist() == rows[order].tolist()
    expected = annotator.annotate_ids(rows[order].astype(np.int32))
    assert classes.tolist() == [labelled.classes.tolist() for labelled in expected]
    assert (classes == FactClass.FACTUAL).any() and (classes[got == annotator.eos_id] == FactClass.GRAMMATICAL).all()


def test_stream_without_labels_has_no_facts(corpus: Path, parsing: AnnotationPool, tokenizer_path: Path) -> None:
    """In a mixture, the documents of a stream that is not annotated have no factual token; the others do."""
    streams = {
        "facts": Source(local=corpus, split="train"),
        "code": Source(local=corpus, split="val", annotate=False, repeat=1),
    }
    loader = annotated_dataloader(streams, parsing, batch_size=4, max_seq_len=SEQ_LEN, lanes=1, repeat=False)
    batches = list(loader)
    ids = torch.cat([batch["input_ids"] for batch in batches]).flatten()
    factual = torch.cat([batch["token_class"] for batch in batches]).flatten() == FactClass.FACTUAL
    code = open_corpus(corpus, split="val")
    tokens = sum(
        len(labelled) + 1
        for labelled in Annotator(tokenizer_path, None).annotate([code.document(n).text for n in range(17)])
    )
    end = int(torch.cat([batch["attention_mask"] for batch in batches]).sum())
    assert not factual[end - tokens : end].any() and factual[: end - tokens].any()
    assert (ids[end - tokens : end] == parsing_eos(tokenizer_path)).sum() == 17


def parsing_eos(tokenizer_path: Path) -> int:
    return Annotator(tokenizer_path, model=None).eos_id


def test_second_epoch_comes_from_the_label_cache(
    corpus: Path, parsing: AnnotationPool, tokenizer_path: Path, annotator: Annotator, tmp_path: Path
) -> None:
    """With a label cache each document is parsed once, in this run and in the next, and the rows do not change."""
    whole = None
    options = {"num_workers": 1, "label_cache": tmp_path / "labels", "start_worker": ThreadWorkers(annotator)}
    for parsed in (90, 0):
        with AnnotationPool(AnnotatorSettings(tokenizer_path), **options) as caching:
            loader = train_loader(corpus, caching, prefetch_rows=8)
            batches = list(islice(loader, 2 * EPOCH_BATCHES))
            stats = caching.stats()
            assert stats.documents - stats.cached == parsed and stats.cached > 60
        rows = torch.stack([torch.stack([batch["input_ids"], batch["token_class"].long()]) for batch in batches])
        whole = rows if whole is None else whole
        assert torch.equal(rows, whole)
    batches = list(islice(train_loader(corpus, parsing), 20))
    plain = torch.stack([torch.stack([batch["input_ids"], batch["token_class"].long()]) for batch in batches])
    assert torch.equal(plain, whole[:20])


JUDGED = "Ada Lovelace wrote to Charles Babbage in London."


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """A data set with spans, train and val: in document n, the word that a judge delegates; one has bad spans."""
    for split, count in (("train", 12), ("val", 5)):
        with MDSWriter(
            out=str(tmp_path / "judged" / split), columns=dict.fromkeys(("id", "text", "spans"), "str")
        ) as out:
            for number in range(count):
                spans = "[[0, 999]]" if number == 3 else "[[13, 18]]"
                out.write({"id": f"{split}-{number}", "text": f"{JUDGED} {number}", "spans": spans})
    return tmp_path / "judged"


def factual_texts(batches: list[dict], tokenizer_path: Path) -> str:
    """What the factual tokens of the batches spell."""
    ids = torch.cat([batch["input_ids"][batch["token_class"] == FactClass.FACTUAL] for batch in batches])
    return sentencepiece.SentencePieceProcessor(str(tokenizer_path)).decode(ids.tolist())


def test_validation_with_spans(judged: Path, pool: AnnotationPool, tokenizer_path: Path) -> None:
    """A loader of judged documents needs no parser: its facts are the judge's, those of a document with bad spans being
    none; that one keeps its tokens and is named."""
    before = dict(pool.quarantine)
    batches = list(val_loader(judged, pool, spans_column="spans", lanes=1))
    assert factual_texts(batches, tokenizer_path) == " ".join(["wrote"] * 4)
    written = sum(int((batch["labels"] >= 0).sum()) for batch in batches)
    plain = sum(int((batch["labels"] >= 0).sum()) for batch in val_loader(judged, pool, lanes=1))
    assert written == plain, "no token is lost"
    assert {name: why for name, why in pool.quarantine.items() if name not in before}.keys() == {"val-3"}
    assert "document 'val-3': spans: (0, 999) is no span of a text of" in pool.quarantine["val-3"]


def test_mixture_of_judged_and_parsed_streams(
    judged: Path, parsing: AnnotationPool, tokenizer_path: Path, annotator: Annotator
) -> None:
    """In one run, a stream with spans has the judge's facts, and another one the parser's."""
    sources = {
        "judged": Source(local=judged, split="val", spans_column="spans"),
        "parsed": Source(local=judged, split="train"),
    }
    loader = annotated_dataloader(sources, parsing, batch_size=1, max_seq_len=SEQ_LEN, lanes=1, repeat=False)
    text = factual_texts(list(loader), tokenizer_path)
    assert list(parsing.quarantine) == ["judged/val-3"]
    assert set(loader.dataset.state_dict()) == {"lacy_stream"}
    assert "spans (rule 1) in column spans" in loader.dataset.state_dict()["lacy_stream"]
    expected = ["wrote"] * 4
    for number in range(12):
        (tokens,) = annotator.annotate([f"{JUDGED} {number}"])
        ids = tokens.ids[tokens.classes == FactClass.FACTUAL].tolist()
        expected.append(sentencepiece.SentencePieceProcessor(str(tokenizer_path)).decode(ids))
    assert text.split() == " ".join(expected).split() and "Lovelace" in text


def test_resume_with_other_labels_is_refused(judged: Path, pool: AnnotationPool) -> None:
    """A position of the stream with spans does not fit the same data without them, and the data is named."""
    state = train_loader(judged, pool, spans_column="spans").dataset.state_dict()
    with pytest.raises(PositionError, match="data: .*, spans .rule 1. in column spans' in the checkpoint"):
        train_loader(judged, pool).dataset.load_state_dict(state)


def test_bad_settings_are_refused(corpus: Path, pool: AnnotationPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """DataLoader workers, a row of one token, and lanes that the ranks cannot share say what to do."""
    dataset = train_loader(corpus, pool).dataset
    with pytest.raises(RuntimeError, match="num_workers=0"):
        monkeypatch.setattr("lacy_stream.stream.batches.get_worker_info", lambda: object())
        next(iter(dataset))
    with pytest.raises(ValueError, match="max_seq_len is 1"):
        train_loader(corpus, pool, max_seq_len=1)
    monkeypatch.setattr("lacy_stream.stream.batches.dist.get_world_size", lambda: 3)
    with pytest.raises(ValueError, match=r"3 ranks; it can be shared by \[1, 2, 4, 8\]"):
        train_loader(corpus, pool)


def test_failure_of_a_worker_reaches_the_trainer(corpus: Path, tokenizer_path: Path) -> None:
    """When the parser cannot be loaded, the first batch fails with the reason; nothing waits for ever."""
    workers = WordWorkers(failed_starts=[WorkerCannotStart("no en_core_web_nothing")])
    with AnnotationPool(AnnotatorSettings(tokenizer_path), num_workers=1, start_worker=workers) as broken:
        with pytest.raises(RuntimeError, match="no en_core_web_nothing"):
            next(iter(train_loader(corpus, broken)))
