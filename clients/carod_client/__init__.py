"""Run command-line jobs on a grid: `async with Grid(url) as grid: result = await grid.run("/bin/echo",
"Hello")`.

`SyncGrid` is the same for code without asyncio. A job is a program, its arguments and its input files; what
comes back is a `Result`: how it ended, and the files it left. Every failure is a `GridError`.
"""

from carod.classad import ClassAd
from carod.classad import parse as expr
from carod.job import JobStatus, Reply
from carod_client.description import CommonOptions, JobOptions
from carod_client.errors import (
    BadArchive,
    BadJob,
    BrokerLost,
    BrokerRefused,
    GridError,
    JobError,
    JobExpired,
    JobFailed,
    JobHeld,
    JobRejected,
    JobRemoved,
    JobTimeout,
    NoQueue,
)
from carod_client.grid import Grid
from carod_client.handle import Handle
from carod_client.results import Result, Results
from carod_client.sync import SyncGrid, SyncHandle

__all__ = [
    "BadArchive",
    "BadJob",
    "BrokerLost",
    "BrokerRefused",
    "ClassAd",
    "CommonOptions",
    "Grid",
    "GridError",
    "Handle",
    "JobError",
    "JobExpired",
    "JobFailed",
    "JobHeld",
    "JobOptions",
    "JobRejected",
    "JobRemoved",
    "JobStatus",
    "JobTimeout",
    "NoQueue",
    "Reply",
    "Result",
    "Results",
    "SyncGrid",
    "SyncHandle",
    "expr",
]
