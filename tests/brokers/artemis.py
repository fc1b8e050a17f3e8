"""An Apache ActiveMQ Artemis of one's own, on loopback, that leaves nothing behind.

As a library, `PrivateArtemis`. As a command, it runs another command with CAROD_BROKER in its environment:

    python tests/brokers/artemis.py -- carod start

Only the standard library, Java 17 or newer, and (the first time) Maven.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.brokers.command import main_of
from tests.brokers.java import PrivateJavaBroker

POM = Path(__file__).with_name("artemis.pom.xml")
OLDEST_JAVA = 17
READY = "AMQ221007"  # "Server is now active"

PROPERTIES = ("-Dorg.slf4j.simpleLogger.log.org.apache.activemq.audit=off",)

# Queues as the broker's own `artemis create` sets them up: made on first use, the dead and the expired are kept.
# Without security any name and password will do.
CONFIG = """\
<configuration xmlns="urn:activemq">
  <core xmlns="urn:activemq:core">
    <name>carod</name>
    <!-- As shipped, what a node had when the broker was killed looks like new. -->
    <persist-delivery-count-before-delivery>true</persist-delivery-count-before-delivery>
    <security-enabled>false</security-enabled>
    <journal-type>NIO</journal-type>
    <journal-min-files>2</journal-min-files>
    <journal-pool-files>2</journal-pool-files>
    <journal-file-size>1M</journal-file-size>
    <paging-directory>{directory}/data/paging</paging-directory>
    <bindings-directory>{directory}/data/bindings</bindings-directory>
    <journal-directory>{directory}/data/journal</journal-directory>
    <large-messages-directory>{directory}/data/large-messages</large-messages-directory>
    <!-- How often queues are looked through for expired messages, in ms. As shipped: 30 s. -->
    <message-expiry-scan-period>200</message-expiry-scan-period>
    <acceptors>
      <acceptor name="amqp">tcp://127.0.0.1:{port}?protocols=AMQP</acceptor>
      <acceptor name="anonymous">tcp://127.0.0.1:{anonymous_port}?protocols=AMQP;saslMechanisms=ANONYMOUS</acceptor>
    </acceptors>
    <addresses>
      <address name="DLQ"><anycast><queue name="DLQ"/></anycast></address>
      <address name="ExpiryQueue"><anycast><queue name="ExpiryQueue"/></anycast></address>
    </addresses>
    <address-settings>
      <address-setting match="#">
        <dead-letter-address>DLQ</dead-letter-address>
        <expiry-address>ExpiryQueue</expiry-address>
        <auto-delete-queues>false</auto-delete-queues>
        <auto-delete-addresses>false</auto-delete-addresses>
      </address-setting>
    </address-settings>
  </core>
</configuration>
"""


class PrivateArtemis(PrivateJavaBroker):
    """An Artemis of one's own: AMQP 1.0 only. Raises BrokerUnavailable where none can be had."""

    def __init__(self) -> None:
        super().__init__("Artemis", POM, OLDEST_JAVA, READY)

    def _arguments(self, directory: Path) -> list[str]:
        config = directory / "etc" / "broker.xml"
        config.parent.mkdir(exist_ok=True)
        config.write_text(
            CONFIG.format(directory=directory, port=self.port, anonymous_port=self.anonymous_port), encoding="utf-8"
        )
        return [*PROPERTIES, "org.apache.activemq.artemis.core.server.embedded.Main", str(directory)]


if __name__ == "__main__":
    sys.exit(main_of("Artemis", PrivateArtemis, __file__))
