"""A small AMQP 1.0 broker inside a process: for the demo, for tests, for one machine.

It keeps nothing across a restart and knows no users; docs/how-to/broker.md says what it does and does not do.
"""

from carod.amqp.embedded.broker import EmbeddedBroker, ListenError

__all__ = ["EmbeddedBroker", "ListenError"]
