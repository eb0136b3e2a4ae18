"""Run a memory over a file under a seccomp filter: ``seccomp_child.py ERRNO NUMBER,NUMBER,...``.

It prints "all readable", or what was lost. The numbers are of system calls of x86_64.
"""

import asyncio
import ctypes
import os
import random
import sys

import reclaimactors as ra

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # instructions of a BPF program
ANSWER_ERRNO, ALLOW = 0x0005_0000, 0x7FFF_0000


def forbid(errno: int, numbers: list[int]) -> None:
    rows = [(LOAD, 0, 0, 0)]
    for number in numbers:
        rows += [(JUMP_IF_EQUAL, 0, 1, number), (RETURN, 0, 0, ANSWER_ERRNO | errno)]
    rows.append((RETURN, 0, 0, ALLOW))
    code = b"".join(
        a.to_bytes(2, "little") + bytes((b, c)) + d.to_bytes(4, "little") for a, b, c, d in rows
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    program = (ctypes.c_ulong * 2)(len(rows), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program)
    ):
        sys.exit(os.strerror(ctypes.get_errno()))


def noise(seed: int) -> bytes:
    return random.Random(seed).randbytes(4096)


async def main() -> str:
    async with ra.open_memory("kcompressd", budget="1MiB") as memory:
        for i in range(600):
            await memory.put(i, noise(i))
        for i in range(0, 600, 3):
            await memory.delete(i)
        lost = []
        for i in set(range(600)) - set(range(0, 600, 3)):
            try:
                assert await memory.get(i) == noise(i)
            except Exception as exc:  # noqa: BLE001 - each is one that was lost
                lost.append(f"{i}: {type(exc).__name__}: {exc}")
        return f"{len(lost)} lost: {lost[0]}" if lost else "all readable"


if __name__ == "__main__":
    forbid(int(sys.argv[1]), [int(number) for number in sys.argv[2].split(",")])
    print(asyncio.run(main()))  # noqa: T201 - the answer
