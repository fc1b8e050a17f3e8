#!/usr/bin/env python3
"""Hello Grid over AMQP 1.0, with Qpid Proton: hello_proton.py [URL [QUEUE [CMD [ARGUMENTS]]]]

On brokers that do not make up reply queues (RabbitMQ), REPLY_QUEUE in the environment names one.
"""

import io
import os
import sys
import uuid
import zipfile

from proton import Condition, Event, Message
from proton.handlers import MessagingHandler
from proton.reactor import Container

URL = os.environ.get("CAROD_BROKER", "amqp://localhost:5672")


class HelloGrid(MessagingHandler):
    """One job, from the reply queue's address to the last reply; `failure` says what went wrong."""

    def __init__(self, url: str, queue: str, cmd: str, arguments: str) -> None:
        super().__init__()
        self.url, self.queue = url, queue
        # A body, though an empty one: RabbitMQ ends the session of a client that sends none.
        self.job = Message(b"", inferred=True, id=uuid.uuid4(), properties={"Cmd": cmd, "Arguments": arguments})
        self.failure: str | None = None

    def on_start(self, event: Event) -> None:
        connection = event.container.connect(self.url, reconnect=False)
        named = os.environ.get("REPLY_QUEUE")
        self.replies = event.container.create_receiver(connection, named, dynamic=not named, name="replies")

    def on_link_opened(self, event: Event) -> None:
        if event.receiver == self.replies:
            self.job.reply_to = self.replies.remote_source.address
            event.container.create_sender(event.connection, self.queue, name=repr(self.queue))

    def on_sendable(self, event: Event) -> None:
        if self.job:
            event.sender.send(self.job)
            self.job = None

    def on_message(self, event: Event) -> None:
        ad, body = event.message.properties, bytes(event.message.body or b"")
        print(*(f"{name}={ad[name]}" for name in ("JobStatus", "JobState", "ExitCode") if name in ad), flush=True)
        if body.startswith(b"ERROR:"):
            self.end(event, body.decode())
        elif ad["JobStatus"] in (3, 5):  # removed, held
            self.end(event, ad.get("HoldReason") or ad.get("RemoveReason") or "the job was removed")
        elif ad["JobStatus"] == 4:  # completed
            with zipfile.ZipFile(io.BytesIO(body)) as results:
                print(results.read("_condor_stdout").decode(), end="")
                if ad.get("ExitCode") != 0:  # none if a signal ended it
                    self.failure = results.read("_condor_stderr").decode() + f"ExitReason={ad['ExitReason']}"
            self.end(event, self.failure)

    def on_link_error(self, event: Event) -> None:
        self.end(event, f"no queue for {event.link.name}: is a node running? {text(event.link.remote_condition)}")

    def on_session_error(self, event: Event) -> None:
        self.end(event, text(event.session.remote_condition))

    def on_connection_error(self, event: Event) -> None:
        self.end(event, text(event.connection.remote_condition))

    def on_transport_error(self, event: Event) -> None:
        self.failure = f"no connection to {self.url.rpartition('@')[2]}: {text(event.transport.condition)}"

    def on_rejected(self, event: Event) -> None:
        self.end(event, f"queue {self.queue!r} did not take the job: is a node running?")

    on_released = on_rejected

    def end(self, event: Event, failure: str | None) -> None:
        self.failure = failure
        event.connection.close()


def text(condition: Condition) -> str:
    return f"{condition.name}: {condition.description}"


def main(url: str = URL, queue: str = "grid", cmd: str = "/bin/echo", arguments: str = "Hello Grid") -> None:
    hello = HelloGrid(url, queue, cmd, arguments)
    Container(hello).run()
    sys.exit(hello.failure)


if __name__ == "__main__":
    main(*sys.argv[1:])
