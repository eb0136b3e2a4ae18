"""A machine without a task group, whose actors a test drives itself; and a store under control."""

import random
from contextlib import AsyncExitStack

import anyio
import pytest
import pytest_asyncio
from anyio.lowlevel import checkpoint

from reclaimactors.backends.memory import MemoryBackend
from reclaimactors.mm.page_io import squeeze
from reclaimactors.testing import FaultyBackend
from reclaimactors.topology import resolve
from reclaimactors.topology.build import build
from reclaimactors.topology.swapon import close_backends

PAGE = 512
BUDGET = 1 << 20


class Steered:
    """An offload whose batches wait, fail or go through as a test says, by their number from 1."""

    workers = 2
    inline = False
    holds = True
    staging = 0
    late = False
    degraded = ""

    def __init__(self, compressor):
        self.compressor = compressor
        self.gates = {}  # number -> Event to wait for
        self.errors = {}  # number -> what it raises
        self.error = None  # what every one raises
        self.started = 0

    async def squeeze(self, pages, *, of_sources=False):
        self.started += 1
        number = self.started
        if number in self.gates:
            await self.gates[number].wait()
        else:
            await checkpoint()
        error = self.errors.get(number, self.error)
        if error is not None:
            raise error
        return squeeze(self.compressor, pages, checksum=of_sources, of_sources=of_sources)


class Kit:
    """What the tests of actors share."""

    page = PAGE
    budget = BUDGET

    @staticmethod
    def text(seed=0, size=PAGE):
        return (b"value %d of the actors, " % seed * (size // 8 + 1))[:size]

    @staticmethod
    def noise(seed=0, size=PAGE):
        return random.Random(seed).randbytes(size)

    @staticmethod
    def store(**faults):
        return FaultyBackend(MemoryBackend(), **faults)

    @staticmethod
    async def settle(turns=50):
        """Let every task run until it waits for something."""
        for _ in range(turns):
            await checkpoint()

    @staticmethod
    def spec(**compress):
        """Return the keyword arguments of a small memory."""
        return {
            "budget": BUDGET,
            "page_size": PAGE,
            "max_folio": 64 * PAGE,
            "swap": [],
            "compress": {"offload": "inline", "fifo": 16, "batch": 32} | compress,
        }

    @classmethod
    def steer(cls, machine):
        machine.offload = Steered(machine.node.compressor)
        return machine.offload

    @staticmethod
    def fill(machine, make=None, *, down_to=0.0, size=PAGE):
        """Put values until free memory is below *low*, or at this share of the way to *min*."""
        node = machine.node
        target = node.marks.low - down_to * (node.marks.low - node.marks.min)
        nr = 0
        while node.memcg.free >= target:
            node.values.commit(("fill", nr), [(make or Kit.text)(nr, size)], 0)
            nr += 1
        return nr


@pytest.fixture
def kit():
    return Kit


@pytest_asyncio.fixture
async def machine_of():
    """Build machines that no task group runs; close them in the end."""
    async with AsyncExitStack() as stack:

        async def make(*, topology="kcompressd", swap=(), **compress):
            spec = Kit.spec(**compress) | {"swap": list(swap)}
            machine = await build(resolve(topology, **spec))
            machine.cpu.rates.compress = (
                1e15  # a slice of the loop holds any batch, whatever this machine does
            )
            stack.push_async_callback(close_backends, machine.swapds.values(), 1.0)
            stack.callback(machine.close)
            stack.callback(setattr, machine, "closing", True)
            return machine

        yield make


@pytest.fixture
def running():
    """Run coroutine functions beside the test, and cancel them in its end."""

    class Running:
        async def __aenter__(self):
            self.tasks = anyio.create_task_group()
            await self.tasks.__aenter__()
            return self.tasks

        async def __aexit__(self, *error):
            self.tasks.cancel_scope.cancel()
            return await self.tasks.__aexit__(*error)

    return Running
