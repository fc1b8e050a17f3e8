"""A RabbitMQ of one's own, on loopback, that leaves nothing behind: for tests, demo and benchmark.

As a library, `PrivateRabbitMQ`. As a command, it runs another command with CAROD_BROKER in its environment:

    python tests/brokers/rabbitmq.py -- carod start

Only the standard library: it runs before there is a virtual environment.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Self
from urllib.parse import unquote, urlsplit

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.brokers.certificates import Certificates, make_certificates
from tests.brokers.handshake import answers_amqp, lets_in
from tests.brokers.package import Package, RabbitMQUnavailable, find_package
from tests.brokers.process import say

BROKER_VARIABLE = "CAROD_BROKER"
DEFAULT_URL = "amqp://guest:guest@127.0.0.1:5672/"
TLS_USER = "carod-client"

# 2.5 s on two idle cores; a shared machine in the middle of a build takes many times that.
START_TIMEOUT = 120.0
STOP_TIMEOUT = 30.0
POLL_INTERVAL = 0.05
LOG_TAIL_LINES = 25

# Read to its end by a shell that outlives a killed parent: each line names the process groups that now run.
WATCHDOG = """
groups=
while read -r line; do groups=$line; done
for group in $groups; do kill -s KILL -- "-$group"; done
[ -z "$groups" ] || rm -rf -- "$1"
"""

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


class BrokerFailed(Exception):
    """A private broker did not start, or a rabbitmqctl command failed. The text has the end of its log."""


def free_ports(count: int) -> list[int]:
    """Loopback ports nobody listens on, from below the kernel's range for outgoing connections.

    A port from that range could be taken by any client while a broker that owns it restarts.
    """
    try:
        first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        first_outgoing = 32768
    candidates = list(range(10000, min(first_outgoing, 32768))) or list(range(32768, 60999))
    random.shuffle(candidates)
    free: list[int] = []
    for port in candidates:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            free.append(port)
        if len(free) == count:
            return free
    raise BrokerFailed(f"fewer than {count} free ports on loopback")


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

    Raises RabbitMQUnavailable where none can be had.
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
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[str] | None = None
        self._environment: dict[str, str] = {}
        self.directory: Path | None = None
        self.certificates: Certificates | None = None
        self.node = f"carod-{secrets.token_hex(4)}@localhost"
        self.port, self.tls_port, self._distribution_port = free_ports(3)

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def tls_url(self) -> str:
        """Without user and password: the client certificate is the login, or add them for PLAIN."""
        return f"amqps://localhost:{self.tls_port}/"

    @property
    def pid(self) -> int | None:
        """The broker's process (Erlang's beam), None while it is stopped."""
        return self._process.pid if self._process else None

    @property
    def pids(self) -> list[int]:
        """Every process started for this node, each a child of this one."""
        helpers = [self._epmd.pid] if self.directory else []
        return [process.pid for process in (self._process, self._watchdog) if process] + helpers

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = START_TIMEOUT) -> Self:
        """Returns once it answers clients. Raises BrokerFailed, with the end of its log."""
        if self._process is not None:
            return self
        try:
            first = self.directory is None
            if first:
                self._set_up()
            self._launch()
            self._wait_until_it_answers(timeout)
            if first and self._tls and not self._peer:
                self._add_tls_user()
        except BaseException:
            self._kill_group()
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """An orderly shutdown; the directory and all that was in it goes."""
        self.shut_down()
        if self.directory is None:
            return
        self._epmd.release()
        self._dismiss_watchdog()
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory = None

    def shut_down(self) -> None:
        """An orderly shutdown that keeps the directory, for a `start` later."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            say(f"RabbitMQ {self.node} did not stop in {STOP_TIMEOUT:.0f} s, killing it")
        self._kill_group()

    def kill(self, *, settled: bool = True) -> None:
        """SIGKILL. The directory stays, for a `start` later.

        RabbitMQ 3 writes a new queue's declaration to disk a moment after it has confirmed it, so a kill right then
        forgets the queue with all its messages. Unless `settled` is false, it is made to write first.
        """
        if settled and self._process is not None:
            with contextlib.suppress(BrokerFailed):
                self.ctl("eval", "mnesia:sync_log().", timeout=10.0)
        self._kill_group()

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
        if self.directory is None:
            return ""
        files = [self.directory / "output", *sorted((self.directory / "log").glob("*.log"))]
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def _set_up(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="carod-rabbitmq-"))
        home = self.directory / "home"
        home.mkdir()
        cookie = home / ".erlang.cookie"
        cookie.write_text(self._epmd.cookie)
        cookie.chmod(0o400)
        (self.directory / "rabbitmq.conf").write_text("\n".join(self._config_lines(self.directory)) + "\n")
        (self.directory / "enabled_plugins").write_text(f"[{','.join(self._plugins)}].\n")
        self._environment = self._make_environment(self.directory)
        self._epmd.acquire(self._environment)
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG, "carod-rabbitmq-watchdog", str(self.directory)],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

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

    def _launch(self) -> None:
        assert self.directory is not None
        with (self.directory / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [self._package.scripts / "rabbitmq-server"],
                env=self._environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._tell_watchdog(f"{self._process.pid} {self._epmd.pid}")

    def _wait_until_it_answers(self, timeout: float) -> None:
        assert self._process is not None
        deadline = time.monotonic() + timeout
        while not answers_amqp("127.0.0.1", self.port):
            if (code := self._process.poll()) is not None:
                raise BrokerFailed(f"RabbitMQ {self.node} ended with {code} before it was up:\n{self._log_tail()}")
            if time.monotonic() > deadline:
                raise BrokerFailed(f"RabbitMQ {self.node} not up after {timeout:.0f} s:\n{self._log_tail()}")
            time.sleep(POLL_INTERVAL)

    def _log_tail(self) -> str:
        return "\n".join(self.log().splitlines()[-LOG_TAIL_LINES:])

    def _add_tls_user(self) -> None:
        self.ctl("add_user", TLS_USER, secrets.token_hex(16))
        self.ctl("set_permissions", TLS_USER, ".*", ".*", ".*")

    def _kill_group(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        self._tell_watchdog(str(self._epmd.pid))

    def _tell_watchdog(self, groups: str) -> None:
        assert self._watchdog is not None
        pipe = _stdin_of(self._watchdog)
        with contextlib.suppress(BrokenPipeError):
            pipe.write(groups + "\n")
            pipe.flush()

    def _dismiss_watchdog(self) -> None:
        if self._watchdog is None:
            return
        self._tell_watchdog("")
        with contextlib.suppress(BrokenPipeError):
            _stdin_of(self._watchdog).close()
        self._watchdog.wait()
        self._watchdog = None


def _stdin_of(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdin is not None
    return process.stdin


class _Signals:
    """SIGINT, SIGTERM and SIGHUP on their way to the command; before it runs, they end the set-up."""

    def __init__(self) -> None:
        self.command: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._forward)

    def _forward(self, number: int, _: FrameType | None) -> None:
        if self.command is None:
            raise SystemExit(128 + number)
        if number == signal.SIGINT and _terminal_signals_us():
            return  # The terminal has sent it to the command too; a second one would cut its clean-up short.
        self.command.send_signal(number)


def _terminal_signals_us() -> bool:
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def reachable_url() -> str | None:
    """The broker that CAROD_BROKER names, or one on the usual port, if it answers and lets us in."""
    url = os.environ.get(BROKER_VARIABLE) or DEFAULT_URL
    parts = urlsplit(url)
    host = parts.hostname or "127.0.0.1"
    if parts.scheme == "amqps":
        # What a TLS port says needs the caller's certificates; that somebody listens has to do.
        try:
            socket.create_connection((host, parts.port or 5671), timeout=2.0).close()
        except OSError:
            return None
        return url
    user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
    return url if lets_in(host, parts.port or 5672, user, password) else None


@contextlib.contextmanager
def broker(fresh: bool = False) -> Iterator[str]:
    """URL of a reachable broker, else, or if it has to be `fresh`, of a private one that ends with the context."""
    if not fresh and (url := reachable_url()):
        say(f"using the broker at {_without_password(url)}")
        yield url
        return
    if not fresh and BROKER_VARIABLE in os.environ:
        say(f"no broker that lets us in at {_without_password(os.environ[BROKER_VARIABLE])} ({BROKER_VARIABLE})")
    started = time.monotonic()
    say("starting a private RabbitMQ on loopback")
    with PrivateRabbitMQ() as private:
        say(f"it answers at {private.url} after {time.monotonic() - started:.1f} s")
        yield private.url


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def run_with_broker(command: list[str], fresh: bool) -> int:
    """Exit code of `command`, run with CAROD_BROKER in its environment; 128 + n if signal n ended it."""
    signals = _Signals()
    with broker(fresh) as url:
        try:
            signals.command = subprocess.Popen(command, env={**os.environ, BROKER_VARIABLE: url})
        except OSError as problem:
            say(f"cannot run {command[0]}: {problem.strerror}")
            return 127
        code = signals.command.wait()
    return code if code >= 0 else 128 - code


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
    try:
        return run_with_broker(options.command, options.fresh)
    except (RabbitMQUnavailable, BrokerFailed) as problem:
        say(str(problem))
        return 1


if __name__ == "__main__":
    sys.exit(main())
