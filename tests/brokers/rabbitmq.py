"""A RabbitMQ of one's own, on loopback, that leaves nothing behind: for tests, demo and benchmark.

As a library, `PrivateRabbitMQ`. As a command, it runs another command with CAROD_BROKER in its environment:

    python tests/brokers/rabbitmq.py -- carod start

Only the standard library: it runs before there is a virtual environment.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.brokers.certificates import Certificates, make_certificates
from tests.brokers.command import BROKER_VARIABLE, run_with_broker, started, without_password
from tests.brokers.handshake import answers_amqp, answers_amqp10, lets_in
from tests.brokers.package import Package, find_package
from tests.brokers.process import START_TIMEOUT, BrokerFailed, BrokerProcess, free_ports, say

DEFAULT_URL = "amqp://guest:guest@127.0.0.1:5672/"
TLS_USER = "carod-client"

CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{port}
num_acceptors.tcp = 2
disk_free_limit.absolute = 10MB
log.console = false
log.file.level = info
collect_statistics_interval = 60000
"""

TLS_CONFIG = """\
listeners.ssl.1 = 127.0.0.1:{port}
num_acceptors.ssl = 2
ssl_options.cacertfile = {certificates.ca}
ssl_options.certfile = {certificates.server}
ssl_options.keyfile = {certificates.server_key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = AMQPLAIN
auth_mechanisms.3 = EXTERNAL
"""

LOOPBACK_DISTRIBUTION = "-kernel inet_dist_use_interface {127,0,0,1}"


class _Epmd:
    """Erlang's port mapper, on a port of its own and as our child; the one on 4369, if any, is not touched.

    Shared by the nodes of a cluster; it ends with the last of them.
    """

    def __init__(self, package: Package) -> None:
        self._package = package
        self._users = 0
        self._process: subprocess.Popen[bytes] | None = None
        (self.port,) = free_ports(1)
        self.cookie = secrets.token_hex(16)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def acquire(self, environment: dict[str, str]) -> None:
        self._users += 1
        if self._process is not None:
            return
        self._process = subprocess.Popen(
            [self._package.epmd, "-port", str(self.port), "-address", "127.0.0.1"],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def release(self) -> None:
        self._users -= 1
        if self._users == 0 and self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


class PrivateRabbitMQ:
    """A RabbitMQ node with its own name, ports, directories and Erlang port mapper, which dies with its parent.

    `config` are lines for rabbitmq.conf, `plugins` names to enable; `tls` adds a TLS port (`tls_url`,
    `certificates`) where the client certificate logs in by itself as TLS_USER (EXTERNAL); with `peer`, a started
    one, it joins that node's cluster at its first start.

    Raises BrokerUnavailable where none can be had.
    """

    def __init__(
        self,
        *,
        config: Iterable[str] = (),
        plugins: Iterable[str] = (),
        tls: bool = False,
        peer: PrivateRabbitMQ | None = None,
        package: Package | None = None,
    ) -> None:
        self._package: Package = package or (peer._package if peer else find_package())
        self._epmd: _Epmd = peer._epmd if peer else _Epmd(self._package)
        self._peer = peer
        self._config = list(config)
        self._plugins = [*plugins, *(["rabbitmq_auth_mechanism_ssl"] if tls else [])]
        self._tls = tls
        self._process = BrokerProcess("RabbitMQ")
        self._environment: dict[str, str] = {}
        self.certificates: Certificates | None = None
        self.node = f"carod-{secrets.token_hex(4)}@localhost"
        self.port, self.tls_port, self._distribution_port = free_ports(3)

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def url10(self) -> str:
        """The same port, for AMQP 1.0: RabbitMQ 4, or an older one with the plugin rabbitmq_amqp1_0."""
        return f"amqp10://guest:guest@127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        """Without user and password: the client certificate is the login, or add them for PLAIN."""
        return f"amqps://localhost:{self.tls_port}/"

    @property
    def directory(self) -> Path | None:
        return self._process.directory

    @property
    def pid(self) -> int | None:
        """The broker's process (Erlang's beam), None while it is stopped."""
        return self._process.pid

    @property
    def pids(self) -> list[int]:
        """Every process started for this node, each a child of this one."""
        return self._process.pids + ([self._epmd.pid] if self.directory else [])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = START_TIMEOUT) -> Self:
        """Returns once it answers clients. Raises BrokerFailed, with the end of its log."""
        if self.pid is not None:
            return self
        try:
            first = self.directory is None
            if first:
                self._set_up(self._process.open())
            self._process.launch([self._package.scripts / "rabbitmq-server"], self._environment)
            self._process.wait_until(lambda: answers_amqp("127.0.0.1", self.port), timeout)
            if first and self._tls and not self._peer:
                self._add_tls_user()
        except BaseException:
            self._process.kill()
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """An orderly shutdown; the directory and all that was in it goes."""
        self.shut_down()
        if self.directory is not None:
            self._epmd.release()
            self._process.close()

    def shut_down(self) -> None:
        """An orderly shutdown that keeps the directory, for a `start` later."""
        self._process.shut_down()

    def kill(self, *, settled: bool = True) -> None:
        """SIGKILL. The directory stays, for a `start` later.

        RabbitMQ 3 writes a new queue's declaration to disk a moment after it has confirmed it, so a kill right then
        forgets the queue with all its messages. Unless `settled` is false, it is made to write first.
        """
        if settled and self.pid is not None:
            with contextlib.suppress(BrokerFailed):
                self.ctl("eval", "mnesia:sync_log().", timeout=10.0)
        self._process.kill()

    def restart(self) -> Self:
        """An orderly restart on the same ports and directory: durable queues and persistent messages survive."""
        self.shut_down()
        return self.start()

    def ctl(self, *arguments: str, timeout: float = START_TIMEOUT) -> str:
        """`rabbitmqctl ARGUMENTS` for this node: its standard output. Raises BrokerFailed with its complaint."""
        try:
            done = subprocess.run(
                [self._package.scripts / "rabbitmqctl", "--quiet", *arguments],
                env=self._environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BrokerFailed(f"rabbitmqctl {' '.join(arguments)}: no answer in {timeout:.0f} s") from None
        if done.returncode != 0:
            complaint = (done.stderr.strip() or done.stdout.strip())[-2000:]
            raise BrokerFailed(f"rabbitmqctl {' '.join(arguments)}: {complaint}")
        return done.stdout

    def log(self) -> str:
        """All that the node has said so far."""
        return self._process.log("log/*.log")

    def _set_up(self, directory: Path) -> None:
        home = directory / "home"
        home.mkdir()
        cookie = home / ".erlang.cookie"
        cookie.write_text(self._epmd.cookie)
        cookie.chmod(0o400)
        (directory / "rabbitmq.conf").write_text("\n".join(self._config_lines(directory)) + "\n")
        (directory / "enabled_plugins").write_text(f"[{','.join(self._plugins)}].\n")
        self._environment = self._make_environment(directory)
        self._epmd.acquire(self._environment)
        self._process.watch(self._epmd.pid)

    def _config_lines(self, directory: Path) -> Iterator[str]:
        yield CONFIG.format(port=self.port)
        if self._tls:
            peers = self._peer.certificates if self._peer else None
            self.certificates = peers or make_certificates(directory / "tls", TLS_USER)
            yield TLS_CONFIG.format(port=self.tls_port, certificates=self.certificates)
        if self._peer:
            yield "cluster_formation.peer_discovery_backend = classic_config"
            yield f"cluster_formation.classic_config.nodes.1 = {self._peer.node}"
            yield f"cluster_formation.classic_config.nodes.2 = {self.node}"
        yield from self._config

    def _make_environment(self, directory: Path) -> dict[str, str]:
        # Whatever the caller's shell says about another broker or Erlang must not reach this one.
        foreign = ("RABBITMQ_", "ERL_", "NOTIFY_SOCKET", "CONF_ENV_FILE", "LD_LIBRARY_PATH")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        path = os.pathsep.join([*map(str, self._package.path), kept.get("PATH", os.defpath), "/usr/sbin:/sbin"])
        libraries = os.pathsep.join(map(str, self._package.libraries))
        return {
            **kept,
            **({"LD_LIBRARY_PATH": libraries} if libraries else {}),
            "PATH": path,
            "HOME": str(directory / "home"),
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd.port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP": str(directory / "erl_crash.dump"),
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_CONF_ENV_FILE": str(directory / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            # With input allowed, the script becomes the broker instead of a shell that waits for it and, told to
            # stop, starts a second Erlang to pass that on; -noinput then forbids the input again.
            "RABBITMQ_ALLOW_INPUT": "true",
            "RABBITMQ_SERVER_START_ARGS": "-noinput +B i",
            # Microseconds of busy waiting more than halve the start (5.6 s to 2.3 s on two cores) and cost an
            # idle broker nothing; the longer ones would take the machine from the tests.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                f"+sbwt very_short +sbwtdio very_short +stbt u {LOOPBACK_DISTRIBUTION}"
            ),
            "RABBITMQ_CTL_ERL_ARGS": f"+sbwt none {LOOPBACK_DISTRIBUTION}",
        }

    def _add_tls_user(self) -> None:
        self.ctl("add_user", TLS_USER, secrets.token_hex(16))
        self.ctl("set_permissions", TLS_USER, ".*", ".*", ".*")


def reachable_url() -> str | None:
    """The broker that CAROD_BROKER names, or one on the usual port, if it answers and lets us in."""
    url = os.environ.get(BROKER_VARIABLE) or DEFAULT_URL
    parts = urlsplit(url)
    host = parts.hostname or "127.0.0.1"
    if parts.scheme in ("amqps", "amqps10"):
        # What a TLS port says needs the caller's certificates; that somebody listens has to do.
        try:
            socket.create_connection((host, parts.port or 5671), timeout=2.0).close()
        except OSError:
            return None
        return url
    if parts.scheme == "amqp10":
        return url if answers_amqp10(host, parts.port or 5672) else None
    user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
    return url if lets_in(host, parts.port or 5672, user, password) else None


@contextlib.contextmanager
def broker(fresh: bool = False) -> Iterator[str]:
    """URL of a reachable broker, else, or if it has to be `fresh`, of a private one that ends with the context."""
    if not fresh and (url := reachable_url()):
        say(f"using the broker at {without_password(url)}")
        yield url
        return
    if not fresh and BROKER_VARIABLE in os.environ:
        say(f"no broker that lets us in at {without_password(os.environ[BROKER_VARIABLE])} ({BROKER_VARIABLE})")
    with started("RabbitMQ", PrivateRabbitMQ) as url:
        yield url


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="rabbitmq.py",
        usage="%(prog)s [--fresh] -- COMMAND [ARGUMENT ...]",
        description="Run COMMAND with CAROD_BROKER=URL in its environment. Where CAROD_BROKER, or else "
        f"{DEFAULT_URL}, answers, that broker is used; otherwise a private RabbitMQ is started on loopback and "
        "stopped when COMMAND ends. Exits as COMMAND does.",
        epilog="examples:\n"
        "  rabbitmq.py -- carod start                  a node, on whatever broker there is\n"
        "  rabbitmq.py --fresh -- bash                 a shell, and an empty broker for as long as it is open\n"
        "  CAROD_BROKER=amqp://rabbit/ rabbitmq.py -- python clients/demo/demo.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fresh", action="store_true", help="a private broker, even where another is reachable")
    parser.add_argument("command", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    return run_with_broker(options.command, broker(options.fresh))


if __name__ == "__main__":
    sys.exit(main())
