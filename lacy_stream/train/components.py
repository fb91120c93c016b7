"""Components that a recipe names, from Composer or from a module of the user's: they are found, checked and built."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lacy_stream.composer_names import PACKAGES, Kind, class_name
from lacy_stream.recipe import Profiler, Recipe, RecipeError
from lacy_stream.schema import Components, OpenSection


@dataclasses.dataclass(frozen=True)
class Component:
    """Something that a recipe names, with its arguments.

    place: its key. kind: what it has to be. name: one of Composer's, or package.module:Class.
    """

    place: str
    kind: Kind
    name: str
    arguments: Mapping[str, Any]

    def find(self) -> type:
        """The class.

        Raises:
            RecipeError: there is no such class, it is of another kind, or it does not take the arguments.
        """
        found = _imported(self.name, self.place) if ":" in self.name else _of_composer(self.kind, self.name)
        base = _base(self.kind)
        if not isinstance(found, type) or not issubclass(found, base):
            raise RecipeError(f"{self.place}: {self.name!r} is no {base.__name__}")
        given = 1 if self.kind == "optimizer" else 0  # the parameters of the model
        check_arguments(found, self.arguments, self.place, given)
        return found

    def build(self, *given: Any) -> Any:
        return self.find()(*given, **self.arguments)


def named_optimizer(recipe: Recipe) -> Component | None:
    """The optimizer, where it is not PyTorch's AdamW."""
    section = recipe.optimizer
    if not isinstance(section, OpenSection):
        return None
    return Component("optimizer", "optimizer", section.name, {"lr": section.lr} | section.further)


def named_scheduler(recipe: Recipe) -> Component | None:
    """The schedule, where it is not the constant one with a warm-up."""
    section = recipe.scheduler
    return (
        Component("scheduler", "scheduler", section.name, section.further) if isinstance(section, OpenSection) else None
    )


def other_components(kind: Kind, section: Components) -> Iterator[Component]:
    """The callbacks, loggers or algorithms that are not among a section's own keys."""
    for name, arguments in section.further.items():
        yield Component(f"{kind}.{name}", kind, name, arguments)


def check_components(recipe: Recipe) -> None:
    """Compare all that a recipe names, and its arguments, with what there is. Composer is imported only where there is
    something to compare.

    Raises:
        RecipeError: naming the key, and the nearest known one.
    """
    named = [named_optimizer(recipe), named_scheduler(recipe)]
    named += other_components("callbacks", recipe.callbacks)
    named += other_components("loggers", recipe.loggers)
    named += other_components("algorithms", recipe.algorithms)
    for component in named:
        if component is not None:
            component.find()
    if recipe.compile_config is not None:
        import torch

        check_arguments(torch.compile, recipe.compile_config, "compile_config", given=1)
        _check_backend(recipe.compile_config.get("backend", "inductor"))
    if recipe.fsdp_config is not None:
        from composer.utils.parallelism import FSDPConfig

        known = [field.name for field in dataclasses.fields(FSDPConfig) if field.init]
        _check_names(recipe.fsdp_config, known, "fsdp_config")
    if recipe.profiler is not None:
        build_profiler(recipe.profiler)


def _check_backend(backend: Any) -> None:
    import torch

    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        near = difflib.get_close_matches(str(backend), known, n=1, cutoff=0)[0]
        raise RecipeError(
            f"compile_config.backend: torch.compile has no backend {backend!r}; the nearest known name is {near}"
        )


def build_profiler(section: Profiler) -> Any:
    """Composer's profiler.

    Raises:
        RecipeError: an argument that it, its schedule or its trace handler does not have.
    """
    from composer.profiler import JSONTraceHandler, Profiler, cyclic_schedule

    parts = {
        "schedule": (cyclic_schedule, section.schedule),
        "json_trace_handler": (JSONTraceHandler, section.json_trace_handler),
    }
    for key, (function, arguments) in parts.items():
        check_arguments(function, arguments, f"profiler.{key}")
    check_arguments(Profiler, section.further, "profiler", given=2)
    schedule, handler = (function(**arguments) for function, arguments in parts.values())
    return Profiler(schedule, [handler], **section.further)


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], place: str, given: int = 0) -> None:
    """Compare arguments with a signature.

    Args:
        place: their key in the recipe.
        given: parameters at the beginning that come from elsewhere.

    Raises:
        RecipeError: an unknown argument, with the nearest known one; or one is missing.
    """
    # A function that takes ``**kwargs`` may know any name, so only missing arguments can be found.
    parameters = list(inspect.signature(function).parameters.values())[given:]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind == p.VAR_KEYWORD for p in parameters):
        _check_names(arguments, [p.name for p in named], place)
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in arguments:
            raise RecipeError(f"{place}.{parameter.name}: missing, and it has no default")


def _check_names(arguments: Mapping[str, Any], known: list[str], place: str) -> None:
    for key, value in arguments.items():
        if key in known:
            continue
        near = difflib.get_close_matches(key, known, n=1, cutoff=0)
        advice = f"the nearest known key is {place}.{near[0]}" if near else "none is known"
        raise RecipeError(f"{place}.{key}: unknown key (value {value!r}); {advice}")


def _of_composer(kind: Kind, name: str) -> Any:
    known = class_name(kind, name)
    assert known is not None, "load_recipe has looked it up"
    return getattr(importlib.import_module(f"composer.{PACKAGES[kind]}"), known)


def _imported(name: str, place: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(f"{place}: {name!r} cannot be imported: {error}") from None
    return found


def _base(kind: Kind) -> type:
    if kind == "optimizer":
        from torch.optim import Optimizer

        return Optimizer
    if kind == "scheduler":
        from composer.optim import ComposerScheduler

        return ComposerScheduler
    if kind == "loggers":
        from composer.loggers import LoggerDestination

        return LoggerDestination
    from composer.core import Algorithm, Callback

    return Algorithm if kind == "algorithms" else Callback
