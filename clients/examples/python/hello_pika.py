#!/usr/bin/env python3
"""Hello Grid with pika: hello_pika.py [URL [QUEUE [CMD [ARGUMENTS]]]]"""

import io
import os
import sys
import uuid
import zipfile
from typing import Any

import pika
from pika.exceptions import AMQPConnectionError, AMQPError, UnroutableError

URL = os.environ.get("CAROD_BROKER", "amqp://guest:guest@localhost:5672")


def main(url: str = URL, queue: str = "grid", cmd: str = "/bin/echo", arguments: str = "Hello Grid") -> None:
    try:
        connection = pika.BlockingConnection(pika.URLParameters(url))
    except AMQPConnectionError as error:
        sys.exit(f"no broker at {url.rpartition('@')[2]}: {error!r}")
    with connection, connection.channel() as channel:
        replies = channel.queue_declare("", exclusive=True).method.queue  # the broker names it, and it goes with us
        job = pika.BasicProperties(
            message_id=str(uuid.uuid4()),
            reply_to=replies,
            headers={"Cmd": cmd, "Arguments": arguments},
        )
        channel.confirm_delivery()  # without it, a message that no queue takes is lost in silence
        try:
            channel.basic_publish("", queue, b"", job, mandatory=True)
        except UnroutableError:
            sys.exit(f"no queue {queue!r} on the broker: is a node running?")
        for _, reply, body in channel.consume(replies, auto_ack=True):
            if is_last(reply.headers, body):
                return


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
    try:
        main(*sys.argv[1:])
    except AMQPError as error:
        sys.exit(f"connection lost: {error!r}")
