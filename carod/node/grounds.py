"""The node's name and its directories on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shutil
from collections.abc import Iterator
from typing import BinaryIO

from carod.config import Config, ConfigError
from carod.starter.process import SpawnerError


def claim_name(config: Config) -> tuple[BinaryIO, str]:
    """The node's name, locked on this machine: two nodes must not share one, nor its directories.

    A name that nobody chose gets a number behind it when it is taken, so that starting a second node just works.
    """
    base = config.node_name
    for name in _names(base, chosen=bool(config.startd_name)):
        directory = f"{config.execute_directory}/{name}"
        try:
            os.makedirs(directory, 0o755, exist_ok=True)
            lock = open(f"{config.execute_directory}/{name}.lock", "wb")
        except OSError as error:
            raise ConfigError(
                f"EXECUTE = {config.execute_directory!r}: {error.strerror}; name a directory that can be written"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return lock, name
    raise ConfigError(f"STARTD_NAME: a node named {base!r} runs on this machine already; choose another --name")


def _names(base: str, chosen: bool) -> Iterator[str]:
    yield base
    if not chosen:
        yield from (f"{base}-{number}" for number in range(2, 100))


def empty(directory: str) -> None:
    """Remove what an earlier life of this node left in its directory."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(directory):
            shutil.rmtree(f"{directory}/{name}", ignore_errors=True)


def user_directory(base: str, user: str) -> str:
    """A slot's directory for one user's jobs; nobody else may look into it."""
    directory = f"{base}-{user}" if user else base
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        if user:
            account = pwd.getpwnam(user)
            os.chown(directory, account.pw_uid, account.pw_gid)
    except KeyError:
        raise SpawnerError(f"user {user!r} does not exist on this node") from None
    except OSError as error:
        raise SpawnerError(f"EXECUTE: {directory!r}: {error.strerror}") from None
    return directory
