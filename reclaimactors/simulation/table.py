"""What simulations are shown as: their figures, and where those of the machine are known from."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from reclaimactors.lab.figures import FIGURES
from reclaimactors.simulation.run import CANNOT, DIFFERS, Simulated

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reclaimactors.lab.run import Load
    from reclaimactors.simulation.spec import Machine

__all__ = ["Simulated", "as_dict", "as_text"]


def as_dict(machine: Machine, load: Load, simulated: Sequence[Simulated]) -> dict[str, Any]:
    """Return what is printed as JSON."""
    return {
        "simulated": True,
        "machine": machine.as_dict(),
        "workload": load.workload,
        "seed": load.seed,
        "budgets": load.budgets,
        "limit_per_s": round(load.limit, 1),
        "input": {
            "paths": [str(path) for path in load.input.paths],
            "pages": len(load.input),
            "value_size": load.input.value_size,
        },
        "differs_between_hosts": DIFFERS,
        "cannot_show": CANNOT,
        "results": [one.as_dict() for one in simulated],
    }


def as_text(machine: Machine, load: Load, simulated: Sequence[Simulated]) -> str:
    """Return a heading, a table, and what the figures of the machine are known from."""
    cpus = ", ".join(f"{spec.count} of capacity {spec.capacity:g}" for spec in machine.cpus)
    who = "each actor is a thread" if machine.actors == "threads" else "actors share an event loop"
    limit = f", a limit of {load.limit:,.0f} ops/s" if load.limit else ""
    return "\n".join([
        f"SIMULATED: {load.workload} on machine {machine.name!r} ({cpus}; {who}),",
        f"{load.budgets:g} x the budget, seed {load.seed}{limit}",
        "",
        *_rows(simulated),
        "",
        *_sources(machine),
        *(f"Not modelled: {what}." for what in CANNOT),
    ])  # fmt: skip


def _rows(simulated: Sequence[Simulated]) -> Iterator[str]:
    label = max([len(figure.name) for figure in FIGURES] + [18])
    cell = max([12, *(len(one.result.topology) for one in simulated)]) + 1
    yield " " * label + "".join(one.result.topology.rjust(cell) for one in simulated)
    for figure in FIGURES:
        cells = [figure.show(one.result) for one in simulated]
        yield figure.name.ljust(label) + "".join(text.rjust(cell) for text in cells)
    joules = [f"{sum(cpu['joules'] for cpu in one.cpus):.2f}" for one in simulated]
    yield "joules".ljust(label) + "".join(text.rjust(cell) for text in joules)
    for who in sorted({name for one in simulated for name in one.threads}):
        busy = [100 * one.threads.get(who, 0.0) / (one.result.seconds or 1) for one in simulated]
        yield f"{who}, busy %"[:label].ljust(label) + "".join(f"{b:.1f}".rjust(cell) for b in busy)


def _sources(machine: Machine) -> Iterator[str]:
    """Say where the machine's figures are known from, the many assumed ones as a number."""
    figures = list(machine.figures())
    counted = Counter(cost.source for _, cost in figures)
    yield (
        f"The machine's {len(figures)} figures: "
        + "; ".join(f"{nr} {source}" for source, nr in counted.most_common())
        + "."
    )
    if counted["assumed"]:
        yield "What follows from assumed figures is a question, not an answer: --json lists them."
