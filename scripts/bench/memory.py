"""Whether a server that nonsense is sent to keeps memory: python scripts/bench/memory.py --rounds 5

It runs in this process. After each round of 2,000 requests: the objects that Python holds, the resident memory, and that after
malloc_trim, which gives back what is free: what still grows then is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import os
import random
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import load

sys.path.insert(0, str(load.ROOT / "tests"))

CLIENTS, REQUESTS = 16, 2000


async def send(url: str, student: str, rng: random.Random) -> None:
    """One round: nonsense, and clients that leave."""
    question, counts, left = load.Question(student, "asthma cough breath"), load.Counts(), REQUESTS

    async def client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await rng.choice([load.send_nonsense, load.send_nonsense, load.leave])(opened, question, counts, rng)

    async with load.session(url) as opened:
        await asyncio.gather(*(client() for _ in range(CLIENTS)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds, rng = parser.parse_args().rounds, random.Random(0)
    from support.serving import running_students

    from factory.registry.registry import Registry

    with TemporaryDirectory() as folder:
        [student, *_], registry, _ = load.make_students(Path(folder))
        with running_students(Registry(registry)) as url:
            for number in range(rounds + 1):  # the first fills caches
                asyncio.run(send(url, student, rng))
                gc.collect()
                resident = load.resident(os.getpid())
                ctypes.CDLL("libc.so.6").malloc_trim(0)
                trimmed = load.resident(os.getpid())
                print(
                    f"{number}: {len(gc.get_objects()):,} objects, {resident / 1e6:.1f} MB, trimmed {trimmed / 1e6:.1f} MB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
