"""The four plugin contracts: compressor, backend, policy, offload.

A plugin is one object that has these methods. `Compressor`, `Policy` and `Offload` are protocols:
inheriting is optional. A backend inherits from `Backend`, which gives the defaults. A plugin
imports nothing but this package's public names.

Each contract speaks in two voices: what the core guarantees, and what the plugin must do. The
suites of `reclaimactors.testing` quote the second word for word when a plugin breaks it.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from reclaimactors.squeezed import Squeezed

__all__ = [
    "Backend",
    "BatchCompressor",
    "Buffer",
    "Compressor",
    "DeactivatingPolicy",
    "Offload",
    "Policy",
    "Verdict",
]

Buffer = bytes | memoryview


def _ignore(_slot: int) -> None:
    """Nobody wants to know."""


class Verdict(enum.Enum):
    """How the reclaim of one folio ended. Each folio that was isolated gets exactly one.

    The first three mean that it left memory; after the others it is resident as before.
    """

    STORED = "stored"  #: its blob is in the zswap pool
    ZERO = "zero"  #: it was one machine word repeated; nothing is kept but that word
    DEVICE = "device"  #: a backing store has acknowledged it
    ACTIVATE = "activate"  #: nobody can take it: do not try again soon
    KEEP = "keep"  #: not now (no room in a mailbox, pinned, handed back): try again
    CANCELLED = "cancelled"  #: it was read, overwritten or deleted meanwhile
    ERROR = "error"  #: compressing or storing it raised; it is dirty as before


@runtime_checkable
class Compressor(Protocol):
    """Turns a folio into a blob and back.

    The core guarantees:

    - What it gives to `compress` is 1 byte to `max_folio`, and nobody changes it meanwhile.
    - `decompress` gets the blob of a `compress`, unless it was damaged, and the size of its data.
    - A worker process builds its own by name and options, or from the pickled object.

    The compressor must keep these rules:

    - It is pure: the same data give the same blob, in every instance with the same options.
    - Several threads may use the same object at once.
    - It keeps no view of what it was given, and does not touch again what it has returned.
    - It can be pickled, or built by its name, so that worker processes can have it.
    - It prints nothing: stdout and stderr belong to the program.
    """

    name: str

    def compress(self, data: Buffer) -> bytes:
        """Return the blob of `data`, as bytes, whatever the data are. It is not empty."""
        ...

    def decompress(self, blob: Buffer, size: int) -> bytes:
        """Return exactly `size` bytes.

        Memory use is bounded by `size`, whatever the blob says.

        Raises:
            CorruptData: if the blob is damaged or holds another number of bytes; nothing else is
                raised for one.
        """
        ...


class BatchCompressor(Compressor, Protocol):
    """A compressor whose library does a whole batch with the GIL released. Optional.

    The core guarantees that a batch has 2 pages or more, and takes it page by page where
    `compress_many` raises or gives another number of blobs.
    """

    def compress_many(self, pages: Sequence[Buffer]) -> list[bytes]:
        """Return a list of the blob of each page, in order; each is what `compress` gives."""
        ...


class Backend:
    """A backing store of slots of one page each. Subclass, and give the `*_many` methods.

    The core guarantees:

    - `open` comes first, and `aclose` once after each `open`, also after one that failed.
    - Calls on different slots may overlap, on one slot never: a slot is not stored to, loaded or
      handed out again before an earlier call about it has ended, or was cancelled and then
      invalidated.
    - Slots are from 0 to `capacity` - 1, and a store never holds more of them.
    - A call is cancelled only at its deadline, at swapoff, or when the memory closes.
    - Whatever a call raises ends that call; loads are tried again, a folio that could not be
      written stays in memory.

    The backend must keep these rules:

    - It does not block the event loop: a blocking call belongs in a thread, one for a whole batch.
    - A call that is cancelled ends soon, with the cancellation, and what it has begun changes no
      slot once a later call about that slot has begun.
    - It raises BackendError (or any OSError), and BackendFull where there is no room.
    - It leaves nothing behind: descriptors, threads, tasks and files are gone after `aclose`.
    - Nothing of what it held is there after another `open`: a store is not persistent.

    ``anyio.to_thread.run_sync`` waits for its thread when it is cancelled, however long that takes,
    and so keeps the second rule by itself. With ``abandon_on_cancel=True`` it does not: the write
    of an abandoned thread must be kept from overtaking a later one.
    """

    in_this_process: ClassVar[bool] = False
    """True where what it holds is in this process, so that `footprint` charges the budget for it.
    A class that defines `footprint` is taken to be one, unless it says otherwise."""

    capacity: int | None = None
    """Slots it can hold, None where only the topology's `size` bounds it. Read after `open`."""

    synchronous: ClassVar[bool] = False
    """True where I/O is as cheap as a memory copy (the kernel's SWP_SYNCHRONOUS_IO)."""

    rotational: bool = False
    """True where seeking is dear, so that neighbours of a slot are better read with it: a disk that
    turns, a store across a network. Read after `open`; slots are then read ahead."""

    compressor: object = None
    """What a store that compresses its slots does it with, a `PluginRef`; None where it does not.
    Where it is the topology's own, the topology's workers do it, and `store_squeezed` follows."""

    takes_whole: bool = True
    """False where pages that do not compress are better left in memory: storing them frees nothing,
    and uses up room that others need. Only for stores that name a `compressor`; read after `open`.
    """

    why_full: str = "the backing store is full"
    """Why `store_squeezed` took fewer rows the last time, and what helps: part of the error."""

    on_shrunk: Callable[[int], None] = staticmethod(_ignore)
    """Call it with a slot whose `footprint` has become less than it was when the slot was stored.
    The core puts itself there."""

    never_compress: Container[bytes] = ()
    """Pages that have killed workers: a store that compresses keeps them as they are.
    The core puts a container there."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "footprint" in vars(cls) and "in_this_process" not in vars(cls):
            cls.in_this_process = True

    async def open(self, page_size: int) -> None:
        """Get ready for slots of `page_size` bytes. Called before anything else.

        One memory at a time has a store: it is opened a second time only after `aclose`, and is
        empty then.
        """

    async def aclose(self) -> None:
        """Let go of every resource and of every slot. Called once, also after a failed open."""

    async def store_many(self, items: Sequence[tuple[int, bytes]]) -> None:
        """Store each (slot, 1 to page_size bytes). Returning acknowledges all of them.

        Storing to a slot in use replaces it. Slots come in any order, and a batch may be empty.

        If this raises, none of the items may ever be returned by a later load; their old contents
        may be lost. Slots that are not in the batch are as before.

        Raises:
            BackendFull: if there is no room for all of them.
            BackendError: if they cannot be stored.
        """
        raise NotImplementedError(f"{type(self).__name__} must define store_many")

    async def load_many(self, slots: Sequence[int]) -> list[bytes]:
        """Return a list of the bytes of each slot, in order; padding up to page_size may follow.

        A load takes nothing away.

        Raises:
            BackendError: if one of the slots was never stored, was forgotten, or cannot be read.
        """
        raise NotImplementedError(f"{type(self).__name__} must define load_many")

    def load_now(self, slots: Sequence[int]) -> list[bytes] | None:  # noqa: ARG002 - a default
        """Return what `load_many` would, if that takes no waiting and some microseconds, else None.

        Optional: a value that can be read so reaches its reader without a change of tasks. It never
        gives what a slot held earlier. The event loop is held meanwhile, so leave what is long to
        `load_many`.
        """
        return None

    async def invalidate_many(self, slots: Sequence[int]) -> None:
        """Forget the slots. One that was never stored is not an error; other slots are as before.

        Returning says that no call that was cancelled before can change them any more: they are
        handed out again. So where a thread goes on after its call was cancelled, wait for it here.
        """

    async def store(self, slot: int, data: bytes) -> None:
        """Store one slot."""
        await self.store_many([(slot, data)])

    async def load(self, slot: int) -> bytes:
        """Return one slot."""
        return (await self.load_many([slot]))[0]

    async def invalidate(self, slot: int) -> None:
        """Forget one slot."""
        await self.invalidate_many([slot])

    def store_squeezed(
        self, slots: Sequence[int], sizes: Sequence[int], kept: Sequence[bytes | int]
    ) -> int:
        """Store at once what was compressed with `compressor`. Only for stores that name one.

        Args:
            slots: where.
            sizes: bytes of each source, which is what a load returns.
            kept: a blob, if it is shorter than the source; the source itself; or the 64-bit word
                that the source repeats (little-endian).

        Returns:
            How many rows were stored, from the first on: fewer than all where there is no room,
            and then `why_full` says why.
        """
        raise NotImplementedError(f"{type(self).__name__} names a compressor: it must define this")

    def footprint(self, slots: Sequence[int]) -> int:  # noqa: ARG002 - a store elsewhere holds nothing here
        """Return the bytes of *this process* that these stored slots hold: 0 for a file.

        An int, 0 or more. They are charged to the budget, up to the bytes that were stored: a store
        that holds more than that frees nothing.

        Such a store gives way: it is written to while it holds less than half of the budget, or no
        other store has room, and its coldest folios move to a store outside where nothing else is
        left to reclaim. They are read with `load_now`, one slot at a time.
        """
        return 0


@runtime_checkable
class Policy(Protocol):
    """Which folio goes next. Synchronous, without I/O, clock or random wake-ups of its own.

    The core guarantees:

    - A pfn is a small int, one folio from put to delete, and used again only after `remove`: so
      what a policy remembers of a reclaimed folio may be keyed by it.
    - A folio is on the lists (after `insert` and `putback`), isolated (after `isolate`), or
      reclaimed (after `shadow`), and every call fits where it is.
    - `access` is called while a folio is on the lists or isolated; `remove` wherever it is.
    - All calls come from one thread. An object serves one memory without groups; one that is named
      is built for it, and for each group, with its options and, if it takes it, with `pages`: base
      pages of the budget.

    The policy must keep these rules:

    - Each call costs O(1) a folio, however many there are.
    - What it holds is bounded by the folios that were not removed: ghosts too.
    - A folio in flight is on no list: only `putback` and `insert` put one there.
    - Every folio on the lists can be isolated, also where all were read.
    """

    def insert(self, pfn: int, *, refault: int | None) -> bool | None:
        """Put a resident folio on the lists. `refault` is what `shadow` returned, None = new.

        Returning True says that the refault distance made it part of the workingset (the kernel's
        workingset_activate); None or False that it was not.
        """
        ...

    def access(self, pfn: int) -> None:
        """Note that a resident folio was read. On the path of every hit: keep it tiny.

        Where it is isolated, it stays so. Reads protect a folio against others that nobody reads.
        """
        ...

    def remove(self, pfn: int) -> None:
        """Forget a folio wherever it is: on the lists, isolated, or reclaimed."""
        ...

    def isolate(self, nr: int) -> list[int]:
        """Take up to `nr` of the coldest folios off the lists; [] only where there is none.

        For each of them either `putback` or `shadow` or `remove` follows.
        """
        ...

    def putback(self, pfns: Sequence[int], verdict: Verdict) -> None:
        """Return isolated folios to the lists: ACTIVATE, KEEP, CANCELLED or ERROR says why.

        KEEP goes to the cold end, in order: they are the next to be isolated, as nobody has tried
        to reclaim them. ACTIVATE does not, or reclaim would look at the same ones again and again.
        """
        ...

    def shadow(self, pfn: int) -> int:
        """An isolated folio has left memory: return what `insert` shall get at its refault.

        An int, at least 0, that fits 63 bits.
        """
        ...

    def age(self, now: float) -> None:
        """Let time pass (`now` in seconds): once per pass of kswapd."""
        ...


class DeactivatingPolicy(Policy, Protocol):
    """A policy that heeds ``Advice.COLD``. Optional; without it that advice has no effect."""

    def deactivate(self, pfn: int) -> None:
        """Make a folio on the lists the next to be isolated, its reads forgotten.

        One that is isolated stays so.
        """
        ...


@runtime_checkable
class Offload(Protocol):
    """Compresses whole batches on CPUs of its own, while the event loop goes on.

    A topology names it: ``offload = "native"``. Its factory gets, beside its options, what it takes
    of `compressor` (the object that the topology names), `workers` (batches that are compressed at
    the same instant) and `nice` (niceness to add), and refuses with a `PluginError` a compressor
    that it cannot do.

    The core guarantees:

    - All calls come from the event loop's thread, `open` first; it may be opened again once `close`
      has returned True.
    - A page is a `bytes` object, and no two calls change the same list.
    - In a forked child nothing but `close` is called.

    The offload must keep these rules:

    - None of its methods waits for a batch. `close` may wait for some milliseconds.
    - Each batch is collected once, in any order. Its rows are those of the `Compressor`: the blobs,
      byte for byte, and a crc32 of what a store would get.
    - It holds its pages until they are collected, and changes none of them.
    - What its compressor cannot do is a row of kind FAIL or NOMEM, never an exception of `collect`.
    - Blobs are made in `collect`, so that they lie in the same malloc arena as all that stays.
    """

    @property
    def staging(self) -> int:
        """Bytes of its buffers, which are outside the budget. Read from any thread."""
        ...

    def open(self) -> int:
        """Start; return a descriptor that is readable while there is something to collect.

        Raises:
            OSError: if it cannot start now. The event loop compresses then, and it is tried again.
        """
        ...

    def submit(self, pages: Sequence[bytes], *, of_sources: bool) -> int:
        """Take a batch, and return its number, which no other batch has.

        Args:
            pages: the sources of its folios.
            of_sources: whether the crc32 is of each source, also where there is a blob.

        Raises:
            MemoryError: if there is no memory for it. The event loop compresses it then.
        """
        ...

    def collect(self) -> tuple[int, Squeezed] | None:
        """Return the number and the rows of a batch that is done, None where there is none."""
        ...

    def close(self) -> bool:
        """Stop, drop every batch, and let go of the descriptor; return whether that is done.

        It is called again until it has returned True: until then a page may still be looked at. In
        a forked child, whose threads are the parent's, it closes what it inherited, and is done.
        """
        ...
