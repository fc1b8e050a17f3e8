"""What makes a query of the queue cheap changes nothing of what it finds."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from carod.classad import ClassAd, parse
from carod.job import wire_headers
from qmf_agent.jobqueue import records
from qmf_agent.jobqueue.constraint import Constraint, as_classad, full_ad
from qmf_agent.jobqueue.jobs import JobId
from qmf_agent.jobqueue.records import NewJob

ADS = [
    '[Project = "risk"; A = 1]',
    '[project = "RISK"; a = 1.0]',
    '[Project = "ris" + "k"]',
    '[Project = strcat("ri", "sk"); A = B; B = C + 1; C = 0]',
    '[Project = Other; Other = "risk"]',
    '[Project = "risky"; Other = "risk"]',
    '[Project = "risk\\"s"; A = "1"]',
    '[Other = "\\"project\\":\\"risk\\""]',
    '[Other = [Project = "risk"]; Project = Other.Project]',
    '[Project = "r\\303\\251sum\\303\\251"; A = true]',
    "[Project = undefined; A = error]",
    '[Project = {"risk"}; A = 2]',
    '[Project = "Ri\\\\sk"; A = -1]',
    "[A = 9]",
    "['odd name' = 1; A = 1 > 0]",
]
CONSTRAINTS = [
    'Project == "risk"', '"RISK" == Project', 'Project =?= "risk"', 'Project != "risk"', 'Project =!= "risk"',
    'MY.Project == "risk"', '(Project == "risk") && A == 1', 'Project == "risk" || A == 1', '!(Project == "risk")',
    'Project == "risk\\"s"', 'Project == "r\\303\\251sum\\303\\251"', 'Project == "Ri\\\\sk"', "A == 1", "1 == A",
    "A =?= 1", "A =!= 1", "A =?= undefined", "Project =?= undefined", "A > 0", "0 < A", "A", "A && true",
    "true", "false",
    "ClusterId == 2", "ClusterId > 2 && ClusterId <= 5", "5 > ClusterId", "ClusterId == 2.0", "JobStatus == 1",
    'Owner == "ANN"', 'Owner =?= "ANN"', 'Owner =?= "ann" && A == 1', 'Owner != "ann"', 'Submission == "Group"',
    'size({JobStatus == 5 && ClusterId == 1 && true}) > 0', 'ifThenElse(true, true, JobStatus == 5 && ClusterId == 9)',
    "JobPrio < 0", "JobPrio =!= 0", "'odd name' == 1", 'regexp("^ri", Project)',
    "ClusterId == 4611686018427387905 - 1",
    'Other == "risk" && Project == "risky"', "Project.x == 1", '.Project == "risk"',
    "JobStatus =?= JobStatus && A == 1",
]  # fmt: skip


@pytest.fixture(scope="module")
def db() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(records.SCHEMA)
    records.grid_number(connection)
    for number, text in enumerate(ADS):
        ad = dict(wire_headers(ClassAd.parse(text)))
        owner = "ann" if number % 2 else "Bob"
        ad |= {"Owner": f'"{owner}"'}
        job = NewJob(ad, owner, None, "group" if number % 3 else None, number % 4 - 1)
        records.insert(connection, "test", [job])
    yield connection
    connection.close()


def expected(db: sqlite3.Connection, text: str) -> list[int]:
    """By reading each ad as a whole."""
    condition = parse(text)
    jobs = [records.known(db, JobId(cluster, 0)) for cluster in range(1, len(ADS) + 1)]
    found = []
    for job in jobs:
        value = condition.evaluate(as_classad(full_ad(job)))
        if value is True or (isinstance(value, int | float) and not isinstance(value, bool) and value != 0):
            found.append(job.id.cluster)
    return found


@pytest.mark.parametrize("text", CONSTRAINTS)
def test_a_query_finds_what_the_expression_is_true_for(db: sqlite3.Connection, text: str) -> None:
    found, following = Constraint(text).look(db, -1, 500)
    assert ([job.id.cluster for job in found], following) == (expected(db, text), 0)


def test_a_query_goes_on_where_it_ended(db: sqlite3.Connection) -> None:
    seen, after = [], -1
    while True:
        found, after = Constraint("ClusterId > 3").look(db, after, 2)
        seen += [job.id.cluster for job in found]
        if not after:
            break
    assert seen == list(range(4, len(ADS) + 1))
