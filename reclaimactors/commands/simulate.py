"""The commands in virtual time: topologies on a modelled machine."""

from __future__ import annotations

import json
from typing import Annotated

import attrs
import typer

from reclaimactors.commands.measure import load_of, resolve_all
from reclaimactors.commands.options import WHICH, Budget, Inputs, Json, Seed, WorkloadName
from reclaimactors.commands.output import show
from reclaimactors.lab.catalog import WORKLOADS
from reclaimactors.lab.workload import set_budgets
from reclaimactors.simulation import table
from reclaimactors.simulation.run import simulate as run_simulation
from reclaimactors.simulation.spec import BUILT_IN, load
from reclaimactors.topology import builtin_names

__all__ = ["add_to"]

SECONDS = 2.0

MachineName = Annotated[
    str,
    typer.Option(
        "--machine", metavar="FILE", help=f"A machine file, or one of {', '.join(BUILT_IN)}."
    ),
]
VirtualSeconds = Annotated[
    float, typer.Option("--seconds", metavar="N", help="How long clients work, in virtual time.")
]


def add_to(app: typer.Typer) -> None:
    """Add `simulate`."""
    app.command()(simulate)


def simulate(
    topologies: Annotated[list[str], typer.Argument(help=WHICH)],
    *,
    machine: MachineName = "phone",
    inputs: Inputs = None,
    workload: WorkloadName = "launch",
    seconds: VirtualSeconds = SECONDS,
    budget: Budget = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Run topologies on a modelled machine, in virtual time.

    The same actors, and what the compressor really gives; how long things take is what the machine
    file says. Two runs with the same seed and input print the same.
    """
    on = load(machine)
    todo = load_of(inputs, workload, seconds, seed)
    in_ram = WORKLOADS[workload].scheduled and not set(topologies) - set(builtin_names())
    named = resolve_all(topologies, budget, in_ram=in_ram)
    todo = attrs.evolve(todo, budgets=set_budgets(named.values()))
    simulated: list[table.Simulated] = []
    for name, topology in named.items():
        done = run_simulation(topology, on, todo, seconds=seconds, name=name)
        todo = attrs.evolve(todo, limit=done.limit)  # rates are shares of what the first one serves
        simulated.append(done)
    if as_json:
        show(json.dumps(table.as_dict(on, todo, simulated), indent=2))
    else:
        show(table.as_text(on, todo, simulated))
