"""What the workers of a pool have done: values that do not change, and what they say to people."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class WorkerRate:
    """Tokens that one worker has annotated, and the time that they took. Its replacements count as the same worker."""

    tokens: int = 0
    """Tokens that it has annotated."""
    cpu_s: float = 0.0
    """Seconds of CPU time that this took. If the worker has a core of its own, this is its working time."""
    engine: dict[str, float] = field(default_factory=dict)
    """``Annotator.stats`` of the worker's present process."""
    place: str = ""
    """Address of the machine of its present process; "" for this one."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of CPU time."""
        return self.tokens / self.cpu_s if self.cpu_s else 0.0

    def plus(self, tokens: int, cpu_s: float, engine: dict[str, float], place: str) -> WorkerRate:
        """The rate after one more batch."""
        return WorkerRate(self.tokens + tokens, self.cpu_s + cpu_s, engine, place)


@dataclass(frozen=True)
class PoolStats:
    """Counters since the pool started."""

    documents: int = 0
    """Documents delivered."""
    cached: int = 0
    """Delivered documents whose labels came from the label cache."""
    workers: tuple[WorkerRate, ...] = ()
    """The rate of each worker."""
    queued: int = 0
    """Documents that wait for a worker."""
    in_flight: int = 0
    """Documents that workers are annotating."""
    seconds: float = 0.0
    """Seconds since the pool started."""
    ready: int = 0
    """Workers that are there now."""
    places: dict[str, WorkerRate] = field(default_factory=dict)
    """What each machine has done, by its address; "" is this one."""
    remote: int = 0
    """Remote workers that are wanted; they are the last of ``workers``."""
    waiting: str = ""
    """Why remote workers have no place, in words; "" if all have one."""

    @property
    def tokens(self) -> int:
        """Tokens that the workers have annotated."""
        return sum(worker.tokens for worker in self.workers)

    @property
    def tokens_per_s_per_core(self) -> float:
        """Tokens per second of CPU time, over all workers."""
        return WorkerRate(self.tokens, sum(worker.cpu_s for worker in self.workers)).tokens_per_s

    @property
    def remote_places(self) -> dict[str, WorkerRate]:
        """What each other machine has done."""
        return {place: rate for place, rate in self.places.items() if place}

    @property
    def hit_rates(self) -> dict[str, float]:
        """Mean hit rates of the engine's tables over the workers, by name; empty without an engine."""
        engines = [worker.engine for worker in self.workers if worker.engine]
        names = [name for name in engines[0] if name.endswith("_hit_rate")] if engines else []
        return {name: sum(engine[name] for engine in engines) / len(engines) for name in names}


def remote_metrics(stats: PoolStats) -> dict[str, float]:
    """What the workers of other machines do; empty where nobody wants any."""
    if not stats.remote:
        return {}
    machines = stats.remote_places
    rates = {f"machine/{place}/tokens_per_s_per_core": rate.tokens_per_s for place, rate in machines.items()}
    return rates | {
        "workers_ready": stats.ready,
        "workers_wanted": len(stats.workers),
        "remote_machines": len(machines),
        "remote_cores": sum(rate.cpu_s for rate in machines.values()) / max(stats.seconds, 1e-9),
    }


def describe_places(stats: PoolStats) -> str:
    """One line for people: how many cores annotated on which machine; "" where all are of this one."""
    if not stats.remote:
        return ""
    machines = sorted(stats.remote_places.items(), key=lambda item: -item[1].cpu_s)
    cores = {place: rate.cpu_s / max(stats.seconds, 1e-9) for place, rate in stats.places.items()}
    there = sum(cores[place] for place, _ in machines)
    named = "; ".join(f"{place}: {cores[place]:.1f}, {rate.tokens_per_s:,.0f} tokens/s" for place, rate in machines[:8])
    more = f" ({named}{'; …' if len(machines) > 8 else ''})" if machines else ""
    here = f"annotation used {cores.get('', 0.0):.1f} cores here"
    text = f"{here} and {there:.1f} on {len(machines)} other machine(s){more}"
    return f"{text}; {stats.waiting}" if stats.waiting else text
