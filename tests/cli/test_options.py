"""lacy_stream.cli.options: options from dataclasses, and what is said of command lines that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from lacy_stream.cli.main import main
from lacy_stream.cli.options import CommandParser, add_options, parse_options
from lacy_stream.errors import UsageError


@dataclass(frozen=True)
class Inner:
    """A dataclass inside another."""

    size: Annotated[int, "SIZE"] = 1
    """The size."""

    share: float = 0.5
    """A share, in 100% of cases."""

    pause: Annotated[float, "SECONDS"] = 1.5
    """A pause."""

    def __post_init__(self) -> None:
        if self.share > 1:
            raise UsageError("--share is too much")


@dataclass(frozen=True)
class Base:
    """What others inherit."""

    files: tuple[Annotated[str, "FILE"], ...]
    """Files."""

    out: Annotated[str, "DIR"]
    """Where to."""


@dataclass(frozen=True)
class Outer(Base):
    """A command's options."""

    kind: Literal["a", "b"] | None = None
    """The kind, as in ``code``."""

    rates: tuple[float, ...] = (0.0, 0.25)
    """Rates."""

    baseline: tuple[str, ...] = ()
    """Given again for each."""

    quick: bool = False
    """Be quick."""

    inner: Inner = Inner(size=3)
    """What is inside."""


@pytest.fixture
def parser() -> CommandParser:
    """A parser of Outer."""
    parser = CommandParser(prog="tool")
    add_options(parser, Outer, positional=("files",), repeated=("baseline",), defaults={"share": "half"})
    return parser


@pytest.fixture
def refused(parser: CommandParser, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """The message for a command line that ends with exit code 2."""

    def message(line: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args(line.split())
        assert stopped.value.code == 2
        return capsys.readouterr().err

    return message


def test_values_reach_their_dataclass(parser: CommandParser) -> None:
    """What is not given has the default of the place where it stands; what is given has the type of its field."""
    assert parse_options(Outer, parser.parse_args(["x", "--out", "o"])) == Outer(("x",), "o")
    line = "x y --out o --kind b --rates 1 2 --baseline m --baseline n --quick --size 2kb --share 0.25 --pause 2"
    assert parse_options(Outer, parser.parse_args(line.split())) == Outer(
        ("x", "y"), "o", "b", (1.0, 2.0), ("m", "n"), True, Inner(2048, 0.25, 2.0)
    )
    assert isinstance(parse_options(Outer, parser.parse_args(line.split())).inner.pause, float)
    partly = parse_options(Outer, parser.parse_args(["x", "--out", "o", "--share", "1"]))
    assert partly.inner == Inner(3, 1.0)


def test_help_comes_from_the_fields(parser: CommandParser) -> None:
    """Help texts are the docstrings, with the default of the place; a dataclass inside is a group."""
    help = parser.format_help()
    for line in (
        "FILE Files.",
        "--out DIR Where to.",
        "--kind {a,b} The kind, as in `code`.",
        "--rates F [F ...] Rates. Default: 0 0.25.",
        "--quick Be quick.",
        "What is inside: --size SIZE The size. Default: 3.",
        "--share F A share, in 100% of cases. Default: half.",
    ):
        assert line in " ".join(help.split()), help


def test_mistakes_are_named(parser: CommandParser, refused: Callable[[str], str]) -> None:
    """An unknown option is named with its nearest one, even where another is missing; a bad value with its option."""
    assert refused("x --uot o") == "tool: error: there is no option --uot; did you mean --out?\nSee `tool --help`.\n"
    assert "there is no option --entirely-else\n" in refused("x --out o --entirely-else=1")
    assert "--out" in refused("x") and "FILE" in refused("--out o")
    for line, message in (
        ("--size big", "argument --size: 'big' is not a size; write bytes, 512kb, 64mb or 1gb"),
        ("--share big", "argument --share: 'big' is not a number; write one such as 0.5"),
        ("--kind c", "argument --kind: invalid choice: 'c'"),
    ):
        assert message in refused(f"x --out o {line}")
    with pytest.raises(UsageError, match="--share is too much"):
        parse_options(Outer, parser.parse_args("x --out o --share 2".split()))
    assert parser.parse_args(["--out", "o", "--", "--uot"]).files == ["--uot"]


@pytest.mark.parametrize(
    "line, message",
    [
        ("generate m --promt x", "lacy-stream generate: error: there is no option --promt; did you mean --prompt?"),
        (
            "evaluate nlu m --batchsize 8",
            "lacy-stream evaluate nlu: error: there is no option --batchsize; did you mean",
        ),
        (
            "knowledge build x --otu y",
            "lacy-stream knowledge build: error: there is no option --otu; did you mean --out?",
        ),
        ("--versoin", "lacy-stream: error: "),
    ],
)
def test_each_command_says_what_it_does_not_know(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the command that was meant."""
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith(message)


@pytest.mark.process  # transformers and Composer look at the machine by other programs
def test_counts_below_one_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The option, its value and the way out are one line."""
    for line in ("evaluate nlu m --limit 0", "evaluate nlu m --batch-size 0"):
        assert main([*line.split(), "--out", str(tmp_path)]) == 2
        assert " is 0: give 1 or more\n" in capsys.readouterr().err
    assert main(["show-calls", "c", "--documents", "0"]) == 2
    assert capsys.readouterr().err == "lacy-stream show-calls: error: --documents is 0: give 1 or more\n"


EVALUATIONS = ("losses", "leakage", "nlu", "factscore", "acceptability", "sweep")
RUN_MODELS = ("show-calls", "add-call", "generate", "serve", *(f"evaluate {name}" for name in EVALUATIONS))


@pytest.mark.parametrize("command", RUN_MODELS)
def test_commands_that_run_a_model_have_the_same_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each names the device and the number of threads in the same way."""
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    help = " ".join(capsys.readouterr().out.split())
    assert "--device DEVICE The torch device of the models" in help and "Default: auto." in help
    assert "--threads N Threads of torch" in help


@pytest.mark.process  # transformers and Composer look at the machine by other programs
@pytest.mark.parametrize(
    "line",
    [
        "show-calls c",
        "add-call c",
        "generate m --prompt x",
        "serve m --port 0",
        "evaluate nlu m --out",
        "evaluate losses m --out",
    ],
)
def test_devices_and_threads_that_do_not_exist(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are refused before a model is looked for."""
    command = [*line.split(), *([str(tmp_path / "out")] if line.endswith(("--out", "add-call c")) else [])]
    for option, message in (
        (["--threads", "0"], "--threads is 0: give 1 to 1024"),
        (["--threads", "100000"], "--threads is 100000: give 1 to 1024"),
        (["--device", "gpu"], "there is no device 'gpu' (Expected one of cpu, cuda"),
        (["--device", "cuda:99"], "there is no device 'cuda:99' ("),
    ):
        assert main([*command, *option]) == 2
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1
