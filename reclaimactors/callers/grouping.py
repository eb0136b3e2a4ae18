"""Groups come, change their limits and go: mkdir, memory.max and rmdir of a cgroup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from reclaimactors import registry
from reclaimactors.actors.background import Background
from reclaimactors.actors.kswapd import KswapdActor
from reclaimactors.callers.admission import Admission
from reclaimactors.callers.level import Level
from reclaimactors.callers.reclaim import Proactive
from reclaimactors.callers.write_back import write_back
from reclaimactors.cpu.breath import Breath
from reclaimactors.errors import OutOfMemory, TopologyError
from reclaimactors.mm.limits import Limits
from reclaimactors.mm.offline import offline
from reclaimactors.mm.watermark import Watermarks
from reclaimactors.topology import checks
from reclaimactors.units import format_size, nr_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from reclaimactors.abc import Policy
    from reclaimactors.actors.machine import Machine
    from reclaimactors.mm.group import Group
    from reclaimactors.topology import Topology

__all__ = ["add", "admission_of_root", "change", "checked", "end"]

LEAST_PAGES = 16  #: that a group's max and high allow, as a budget does
_UNBOUND = Watermarks(1, 2, 3)  # of a group without max and high: its parent's come first


def checked(topology: Topology, machine: Machine, given: Mapping[str, Any]) -> Limits:
    """Return limits, each looked at.

    Raises:
        TopologyError: for the first that is not allowed.
    """
    values = dict(given)
    least = LEAST_PAGES * topology.page_size
    for key in ("max", "high", "zswap_max", "swap_max"):
        if values[key] is not None:
            values[key] = checks.size(key, values[key], "a size such as '16MiB', or None")
    for key in ("max", "high"):
        if values[key] is not None and values[key] < least:
            raise checks.bad(key, given[key], f"{LEAST_PAGES} pages, {least} B, or more")
    high, top = values["high"], values["max"]
    if high is not None and top is not None and high > top:
        raise checks.bad("high", given["high"], f"up to max, which is {format_size(top)}")
    values["zswap_writeback"] = checks.flag("zswap_writeback", values["zswap_writeback"])
    if values["swap"] is not None:
        values["swap"] = _devices(machine, values["swap"])
    return Limits(**values)


def _devices(machine: Machine, names: Any) -> frozenset[str]:
    known = [device.name for device in machine.node.swap]
    allowed = f"names of swap devices: {', '.join(known) or 'there are none'}"
    if isinstance(names, str):
        raise checks.bad("swap", names, f"a list of {allowed}")
    mask = frozenset(names)
    for name in mask:
        if name not in known:
            raise checks.bad("swap", name, allowed)
    return mask


def _marks(machine: Machine, limits: Limits) -> Watermarks:
    """Return the watermarks below a group's limits: those of the budget, in proportion."""
    budget, root = machine.node.memcg.budget, machine.node.marks
    if limits.max is None and limits.high is None:
        return _UNBOUND
    if limits.max is None:
        return _below(budget, limits.high or 0, _UNBOUND)
    low, mid, high = (max(at, mark * limits.max // budget) for at, mark in
                      enumerate((root.min, root.low, root.high), 1))  # fmt: skip
    return _below(limits.max, limits.high, Watermarks(low, mid, high))


def _below(top: int, high: int | None, marks: Watermarks) -> Watermarks:
    """Return watermarks that begin to reclaim at `high`, if that is below where they would."""
    if high is None or top - high <= marks.low:
        return marks
    low = top - high
    return Watermarks(marks.min, low, min(top - 1, low + max(1, high // 16)))


def admission_of_root(machine: Machine, topology: Topology) -> Admission:
    """Return the way in of a memory."""
    level = Level(machine, machine.background, brake=topology.brake)
    return Admission(machine, machine.node.root, [level])


def add(
    machine: Machine, topology: Topology, inside: Admission, name: str, limits: Limits
) -> Admission:
    """Add a group inside another, and return the way in of it.

    Raises:
        TopologyError: if its name is taken, or is none.
        PluginError: if it cannot have a policy of its own.
        OutOfMemory: if there are as many groups as there may be.
    """
    parent = inside.group
    if not checks.text("name", name) or "/" in name:
        raise checks.bad("name", name, "a name without '/'")
    if name in parent.children:
        where = f"group {parent.name!r}" if parent.name else "this memory"
        raise checks.bad("name", name, f"one that no other group in {where} has")
    policy = _policy(topology)
    group = machine.node.add_group(name, parent, policy, limits, _marks(machine, limits))
    background = Background(machine, group)
    machine.backgrounds[group.index] = background
    machine.starter.add(_actor(group), KswapdActor(machine, background).run)
    level = Level(machine, background, brake=topology.brake)
    return Admission(machine, group, [level, *inside.levels])


def _actor(group: Group) -> str:
    return f"kswapd of {group.name}"


def _policy(topology: Topology) -> Policy:
    if topology.policy.instance is not None:
        kind = type(topology.policy.instance)
        msg = (
            f"policy is an object of {kind.__name__}, which serves one list of folios; a group has "
            f"its own: name the policy in the topology, as '{kind.__module__}:{kind.__qualname__}'"
        )
        raise TopologyError(msg)
    pages = nr_pages(topology.budget, topology.page_size)
    with checks.within("policy"):
        return registry.build("policies", topology.policy, pages=pages)


async def change(machine: Machine, group: Group, limits: Limits) -> None:
    """Give a group other limits; what it holds beyond a lower max is reclaimed first.

    Raises:
        OutOfMemory: if so much cannot be reclaimed; the limits are as before.
    """
    memcg = group.memcg
    top = machine.node.memcg.budget if limits.max is None else limits.max
    marks = _marks(machine, limits)
    kept = memcg.pinned + memcg.overhead
    if kept + marks.min > top:
        msg = (
            f"max is {format_size(top)}; allowed: {format_size(kept + marks.min)} or more: "
            f"{format_size(memcg.pinned)} of group {group.name!r} is pinned, "
            f"{format_size(memcg.overhead)} is overhead of its keys"
        )
        raise OutOfMemory(msg)
    while (beyond := memcg.budget - memcg.free - (top - marks.min)) > 0:
        freed = await Proactive(machine, beyond, group).run()
        if not freed and not await write_back(machine, group, beyond):
            msg = (
                f"max is {format_size(top)}, and {format_size(beyond)} of group {group.name!r} "
                "beyond it cannot be reclaimed; delete keys of it, or add swap that it may use"
            )
            raise OutOfMemory(msg)
    memcg.resize(top)
    group.limit(limits, marks)
    machine.backgrounds[group.index].fit()
    machine.verdicts.notify()
    group.on_wake()


async def end(
    machine: Machine, admission: Admission, *, reparent: bool, begun: Callable[[], None]
) -> None:
    """End a group: its values become its parent's, or are forgotten; then nothing is left of it.

    Args:
        machine: whose it is.
        admission: of the group.
        reparent: whether its values become its parent's.
        begun: called once there is no way back: nobody is to be served any more.

    On failure, which is a policy's: what is left is to be ended by another call.

    Raises:
        TopologyError: if there are groups in it, or, with `reparent`, if its parent has one of its
            keys; it is as before.
    """
    group = admission.group
    if group.children:
        names = ", ".join(repr(name) for name in group.children)
        raise TopologyError(f"group {group.name!r} holds groups {names}; delete those first")
    if reparent:
        await _no_key_of_both(group)
    if not admission.half_ended:
        begun()
        admission.end()
    admission.half_ended = False
    try:
        with anyio.CancelScope(shield=True):  # half here and half there would be neither
            breath = Breath()
            for _ in offline(group, machine.ledger, reparent=reparent):
                await breath.take()
    except BaseException:
        admission.half_ended = True
        raise
    background = machine.backgrounds.pop(group.index)
    background.close()
    machine.starter.remove(_actor(group))
    machine.forget_psi(group)
    machine.verdicts.notify()


async def _no_key_of_both(group: Group) -> None:
    parent = group.parent
    breath = Breath()
    for key in [*group.values.small, *group.values.large]:
        if parent is not None and key in parent.values:
            where = f"group {parent.name!r}" if parent.name else "the memory"
            msg = (
                f"reparent: key {key!r:.200} of group {group.name!r} is one of {where} too; "
                "delete one of them, or delete the group with reparent=False"
            )
            raise TopologyError(msg)
        await breath.take()
