"""The floor over AMQP 1.0: what floor.py does, in a bare Proton loop.

floor10.py URL QUEUE SLOTS
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Coroutine
from typing import Any

from bare import Bare, Manager, accept
from floor import MEMORY, end_of, spawn, zipped
from proton import Delivery, Message


class Floor:
    """All of it; one instance a process."""

    def __init__(self, bare: Bare) -> None:
        self.bare = bare
        self.base = MEMORY if os.path.isdir(MEMORY) else None
        self.jobs: Any = None
        self.replies: Any = None
        self.tasks: set[asyncio.Task[None]] = set()

    def on_job(self, message: Message, delivery: Delivery) -> None:
        self._start(self.run(message, delivery))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def run(self, job: Message, delivery: Delivery) -> None:
        cmd = str((job.properties or {})["Cmd"]).strip('"')
        directory = tempfile.mkdtemp(prefix="floor-", dir=self.base)
        try:
            pid = spawn(cmd, directory)
            ended = end_of(pid)
            self.reply(job, b"", {"JobStatus": 2})
            await ended
            status = os.wait4(pid, 0)[1]  # noqa: ASYNC222 - it has ended
            result = zipped(directory)
        finally:
            shutil.rmtree(directory)
        code = os.waitstatus_to_exitcode(status)
        self.reply(job, result, {"JobStatus": 4, "JobState": '"Exited"', "ExitCode": code})
        accept(self.jobs, delivery)
        self.bare.engine.flush()

    def reply(self, job: Message, body: bytes, headers: dict[str, Any]) -> None:
        message = Message(body=body, properties=headers, correlation_id=job.id, address=job.reply_to)
        self.bare.send(self.replies, message)


async def serve(url: str, queue: str, slots: int) -> None:
    bare = await Bare.connect(url)
    manager = Manager(bare)
    await manager.declare(queue)
    floor = Floor(bare)
    floor.replies = await bare.sender(None)
    floor.jobs = await bare.receiver(queue, slots, floor.on_job)
    await bare.closed


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], int(sys.argv[3])))
