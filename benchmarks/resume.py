"""What does it cost to resume at document 100, and at document 1,000,000?

    python benchmarks/resume.py --tokenizer tokenizer.model

Writes a corpus of 1,100,000 short documents into a temporary folder (about 200 MB), then resumes a stream at both
places in turn, several rounds: documents read, documents tokenised, and seconds from a new dataset to its first batch.
The stream only tokenises, so that what is measured is finding the place.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from streaming import MDSWriter

from annotator import AnnotatorSettings, Document
from lacy_stream.stream.batches import AnnotatedDataset, collate
from lacy_stream.stream.corpus import Corpus, Order, Source
from lacy_stream.stream.pool import AnnotationPool

DOCUMENTS, LANES, BATCH, SEQ_LEN = 1_100_000, 64, 8, 256


class CountingCorpus(Corpus):
    """Counts the documents that are read."""

    reads = 0

    def document(self, position: int) -> Document:
        self.reads += 1
        return super().document(position)


def write(folder: Path) -> None:
    with MDSWriter(out=str(folder), columns={"id": "str", "text": "str"}, hashes=["xxh64"]) as writer:
        for number in range(DOCUMENTS):
            body = f"Ada wrote letter {number} to Charles about engine {number % 97} in {number % 100}."
            writer.write({"id": str(number), "text": f"Letter {number}\n\n{body}"})


def resume(folder: Path, pool: AnnotationPool, document: int) -> dict[str, float]:
    """Seconds, documents read and documents tokenised up to the first batch after a document."""
    start, before = time.perf_counter(), pool.stats().documents
    corpus = CountingCorpus({"data": Source(local=folder)}, Order("py1e", 17))
    dataset = AnnotatedDataset(corpus, pool, max_seq_len=SEQ_LEN, batch_size=BATCH, lanes=LANES)
    state = json.loads(dataset.state_dict()["lacy_stream"])
    state["cursors"] = [[document // LANES, 5]] * LANES
    state["rows"] = document * 30 // SEQ_LEN // LANES * LANES
    dataset.load_state_dict({"lacy_stream": json.dumps(state)})
    rows = iter(dataset)
    collate([next(rows) for _ in range(BATCH)])
    seconds = time.perf_counter() - start
    while pool.stats().queued or pool.stats().in_flight:
        time.sleep(0.01)
    return {"seconds": seconds, "read": corpus.reads, "tokenised": pool.stats().documents - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="SentencePiece model")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        AnnotationPool(AnnotatorSettings(args.tokenizer, model=None), num_workers=1) as pool,
    ):
        write(Path(folder))
        assert pool.identity
        places = (100, 1_000_000)
        measured = {place: [] for place in places}
        for _ in range(args.rounds):
            for place in places:
                measured[place].append(resume(Path(folder), pool, place))
    print("| resumed at document | documents read | tokenised | seconds to the first batch |")
    print("| --- | --- | --- | --- |")
    for place, results in measured.items():
        median = {name: statistics.median(result[name] for result in results) for name in results[0]}
        print(f"| {place:,} | {median['read']:.0f} | {median['tokenised']:.0f} | {median['seconds']:.2f} |")


if __name__ == "__main__":
    main()
