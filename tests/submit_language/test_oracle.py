"""Ours and HTCondor make the same ads of a submit description, or both refuse it. See record.py for htcondor.json."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from carod_client.submit_language import Description, SubmitError

from carod.arguments import split_arguments, split_environment, split_old_arguments
from carod.classad import ClassAd, parse, unparse
from tests.submit_language.record import BASE, HERE, cases, prepare

RECORDED: list[dict[str, Any]] = json.loads((HERE / "htcondor.json").read_text())

ELSEWHERE = frozenset(
    """BufferBlockSize BufferSize CondorPlatform CondorVersion DiskUsage EnvDelim ExecutableSize FileSystemDomain
    ImageSize JobLeaseDuration Owner ProcId StreamErr StreamIn StreamOut TransferErr TransferIn TransferOut
    TransferInputSizeMB""".split()
)
"""Attributes that others give a job here, or that only HTCondor's daemons look at."""


@pytest.fixture(scope="module", autouse=True)
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The directory that the cases are written for, and the environment they were recorded in."""
    path = tmp_path_factory.mktemp("submit")
    prepare(path)
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", "/home/ann")
        for name in [name for name in os.environ if name.startswith("H") and name != "HOME"]:
            patch.delenv(name)
        os.chdir(path)
        yield str(path.resolve())
        os.chdir(before)


def made(text: str) -> list[ClassAd]:
    return [job.ad for job in Description(text, "x.sub").jobs(lambda: 7, now=1700000000)]


def comparable(name: str, source: str) -> Any:
    """An attribute's value where the spelling does not matter."""
    value = parse(source).evaluate() if source.startswith('"') else source
    if name == "Arguments":
        return split_arguments(str(value))
    if name == "Args":
        return split_old_arguments(str(value))
    if name == "Environment":
        return split_environment(str(value))
    return str(parse(source)).replace(" is ", " =?= ")


def differences(ad: ClassAd, base: ClassAd, cwd: str) -> dict[str, Any]:
    sources = {name: unparse(value).replace(cwd, "$CWD") for name, value in ad.items()}
    plain = {name: unparse(value).replace(cwd, "$CWD") for name, value in base.items()}
    return {
        name: comparable(name, source)
        for name, source in sources.items()
        if plain.get(name) != source and name not in ELSEWHERE
    }


def ours(text: str, cwd: str) -> list[dict[str, Any]] | None:
    """What our ads have besides a plain job's; None for an error."""
    (base,) = made(BASE)
    try:
        return [differences(ad, base, cwd) for ad in made(text)]
    except SubmitError:
        return None


def theirs(case: dict[str, Any]) -> list[dict[str, Any]] | None:
    if "error" in case:
        return None
    return [
        {
            name: comparable(name, source)
            for name, source in ad.items()
            if name not in ELSEWHERE and name != "Requirements"
        }
        for ad in case["jobs"]
    ]


def without_requirements(jobs: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """HTCondor adds what the slot must have to them."""
    return jobs and [{name: value for name, value in job.items() if name != "Requirements"} for job in jobs]


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: " ".join(case["text"].split())[-60:])
def test_the_ads_are_htcondors(case: dict[str, Any], directory: str) -> None:
    same = without_requirements(ours(case["text"], directory)) == theirs(case)
    assert same is not case["text"].startswith("# differs: "), (ours(case["text"], directory), theirs(case))


def test_requirements_are_the_first_part_of_htcondors(directory: str) -> None:
    with_requirements = [case for case in RECORDED if "\nrequirements = " in case["text"] and "jobs" in case]
    for case in with_requirements:
        for job, recorded in zip(made(case["text"]), case["jobs"], strict=True):
            assert recorded["Requirements"].startswith(f"({unparse(job['Requirements'])}) && ")
    assert with_requirements


def test_every_case_was_recorded() -> None:
    assert [case["text"] for case in RECORDED] == cases()
