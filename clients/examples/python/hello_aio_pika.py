#!/usr/bin/env python3
"""Hello Grid with aio-pika: hello_aio_pika.py [URL [QUEUE [CMD [ARGUMENTS]]]]"""

import asyncio
import io
import logging
import os
import sys
import uuid
import zipfile
from typing import Any

import aio_pika
from aio_pika.exceptions import AMQPError, DeliveryError

URL = os.environ.get("CAROD_BROKER", "amqp://guest:guest@localhost:5672")


async def main(url: str = URL, queue: str = "grid", cmd: str = "/bin/echo", arguments: str = "Hello Grid") -> None:
    try:
        connection = await aio_pika.connect(url)
    except (AMQPError, OSError) as error:
        sys.exit(f"no broker at {url.rpartition('@')[2]}: {error}")
    async with connection:
        channel = await connection.channel(on_return_raises=True)
        replies = await channel.declare_queue(exclusive=True)  # the broker names it, and it goes with us
        job = aio_pika.Message(
            b"",
            message_id=str(uuid.uuid4()),
            reply_to=replies.name,
            headers={"Cmd": cmd, "Arguments": arguments},
        )
        try:
            await channel.default_exchange.publish(job, routing_key=queue)
        except DeliveryError:
            sys.exit(f"no queue {queue!r} on the broker: is a node running?")
        async with replies.iterator(no_ack=True) as messages:
            async for reply in messages:
                if is_last(reply.headers, reply.body):
                    return
        sys.exit("connection lost")


def is_last(ad: dict[str, Any], body: bytes) -> bool:
    """Show what a reply says, the job's output if it has ended. Exits if the job failed."""
    print(*(f"{name}={ad[name]}" for name in ("JobStatus", "JobState", "ExitCode") if name in ad), flush=True)
    if body.startswith(b"ERROR:"):
        sys.exit(body.decode())
    if ad["JobStatus"] in (3, 5):  # removed, held
        sys.exit(ad.get("HoldReason") or ad.get("RemoveReason") or "the job was removed")
    if ad["JobStatus"] != 4:  # not completed yet
        return False
    with zipfile.ZipFile(io.BytesIO(body)) as results:
        print(results.read("_condor_stdout").decode(), end="")
        if ad.get("ExitCode") != 0:  # none if a signal ended it
            sys.exit(results.read("_condor_stderr").decode() + f"ExitReason={ad['ExitReason']}")
    return True


if __name__ == "__main__":
    logging.getLogger("aiormq").addHandler(logging.NullHandler())  # it logs errors besides raising them
    try:
        asyncio.run(main(*sys.argv[1:]))
    except (AMQPError, OSError) as error:
        sys.exit(f"connection lost: {error}")
