"""Methods of the agent's objects, on a real broker with a real node: what they do, and how they say no."""

from __future__ import annotations

import asyncio
import io
import time
import zipfile
from typing import Any

import pytest

from qmf_agent.model import Code
from tests.agent.agents import AgentProcess, Console, MethodFailed

SLEEP = {"Cmd": "/bin/sleep", "Args": "100"}


async def refused(console: Console, method: str, **arguments: Any) -> tuple[Code, str]:
    """What a method that fails answers."""
    with pytest.raises(MethodFailed) as caught:
        await console.do(method, **arguments)
    return Code(caught.value.code), caught.value.text


# -- submitting ------------------------------------------------------------------------------------------------


async def test_the_seeds_ad_is_submitted_found_and_runs(console: Console) -> None:
    ad = {
        "Cmd": {"TYPE": 3, "VALUE": "/bin/sleep"},
        "Args": {"TYPE": 3, "VALUE": "0.01"},
        "Requirements": {"TYPE": 0, "VALUE": "TRUE"},
        "JobUniverse": {"TYPE": 1, "VALUE": "5"},
        "Iwd": {"TYPE": 3, "VALUE": "/tmp"},
        "Owner": {"TYPE": 3, "VALUE": "nobody"},
    }
    job = (await console.do("Submit", Ad=ad))["Id"]
    scheduler, _, number = job.partition("#")
    assert scheduler == console.agent.instance
    values = await console.job(job)
    assert values["Owner"] == "nobody"
    assert f"{values['ClusterId']}.{values['ProcId']}" == number
    assert values["GlobalJobId"] == f"{job}#{values['QDate']}"
    assert values["Submission"] == job.rpartition(".")[0]
    done = await console.until(job, 4)
    assert done["ExitCode"] == 0
    assert done["RemoteHost"].endswith("@test-shared-agent")


async def test_submitjob_and_the_later_form_of_ad_do_the_same(console: Console) -> None:
    ad = {
        "Cmd": "/bin/true", "Owner": "tester", "Requirements": "Memory > 0",
        "!!descriptors": {"Requirements": "com.redhat.grid.Expression"},
    }  # fmt: skip
    job = (await console.do("SubmitJob", Ad=ad))["Id"]
    await console.until(job, 4)
    shown = (await console.call(f"job:{job}", "GetAd"))["Ad"]
    assert (shown["Cmd"], shown["Iwd"], shown["JobUniverse"]) == ("/bin/true", ".", 5)
    assert shown["!!descriptors"]["Requirements"] == "com.redhat.grid.Expression"
    other = await console.do("echo", sequence=7, body="hello")
    assert (other["sequence"], other["body"]) == (7, "hello")


async def test_what_a_submitter_may_not_say_is_not_taken_over(console: Console) -> None:
    job = await console.submit(ClusterId=99, QDate=5, JobStatus=4, ExitCode=0, NumJobStarts=50, GlobalJobId="x")
    values = await console.until(job, 4)
    assert values["ClusterId"] != 99
    assert values["QDate"] > 5
    assert values["NumJobStarts"] == 1


@pytest.mark.parametrize(
    ("ad", "text"),
    [
        ({"Owner": "tester"}, "Cmd is missing"),
        ({"Cmd": "/bin/true"}, "Owner is missing"),
        ({"Cmd": "/bin/true", "Owner": "a b"}, "Owner: 'a b' is no user's name"),
        ({"Cmd": "/bin/true", "Owner": "../x"}, "Owner: '../x' is no user's name"),
        (
            {"Cmd": "/bin/true", "Owner": "a", "Requirements": {"TYPE": 0, "VALUE": "Memory >"}},
            "Requirements: .*column 9",
        ),
        ({"Cmd": "/bin/true", "Owner": "a", "Submission": ""}, "Submission: .* is no string of 1 to 255"),
    ],
)
async def test_an_ad_that_can_not_be_is_refused(console: Console, ad: dict[str, Any], text: str) -> None:
    with pytest.raises(MethodFailed, match=text) as caught:
        await console.do("Submit", Ad=ad)
    assert caught.value.code == Code.BAD_VALUE


async def test_many_jobs_are_submitted_as_one_cluster(console: Console) -> None:
    ads = [{"Cmd": "/bin/echo", "Args": str(number), "Owner": "tester", "Submission": "many"} for number in range(5)]
    answer = await console.do("SubmitJobs", Ads=ads)
    first = answer["Id"].rpartition(".")[0]
    assert answer["Ids"] == [f"{first}.{number}" for number in range(5)]
    for job in answer["Ids"]:
        await console.until(job, 4)
    (group,) = await console.objects("Submission", Name="many")
    assert (group["Completed"], group["Idle"], group["Owner"]) == (5, 0, "tester")
    summaries = (await console.call("submission:tester/many", "GetJobSummaries"))["Jobs"]
    assert [each["CustomId"] for each in summaries] == answer["Ids"]


async def test_of_many_jobs_none_is_submitted_if_one_is_bad(console: Console) -> None:
    before = (await console.objects("Scheduler"))[0]["TotalJobAds"]
    good = {"Cmd": "/bin/true", "Owner": "tester"}
    assert await refused(console, "SubmitJobs", Ads=[good, {"Owner": "tester"}]) == (
        Code.BAD_VALUE, "ad 1: Cmd is missing: the ad of a job names the program that it runs"
    )  # fmt: skip
    assert (await console.objects("Scheduler"))[0]["TotalJobAds"] == before


def a_zip(**files: bytes) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return whole.getvalue()


async def test_a_spooled_submission_brings_its_input_along(console: Console) -> None:
    numbers = bytes(range(256)) * 1000
    data = a_zip(script=b"#!/bin/sh\nsum numbers; wc -c < numbers\n", numbers=numbers)
    job = (await console.do("create"))["Id"]
    assert await console.objects("Job", CustomId=job) == []
    for start in range(0, len(data), 1000):
        size = (await console.do("send", Id=job, Data=data[start : start + 1000]))["Size"]
    assert size == len(data)
    ad = {"Cmd": "script", "Owner": "tester"}
    assert (await console.do("submit", Id=job, Ad=ad))["Id"] == job
    await console.until(job, 4)
    out = (await console.call(f"job:{job}", "Fetch", File="_condor_stdout", Start=0, End=0))["Data"]
    assert out.split()[-1] == str(len(numbers)).encode()
    again = await console.do("submit", Id=job, Ad=ad)
    assert again["Id"] == job, "a submit whose answer was lost may be repeated"


async def test_input_is_for_jobs_that_were_begun(console: Console) -> None:
    job = await console.submit()
    for method, arguments in (("send", {"Data": b"x"}), ("submit", {"Ad": {"Cmd": "/bin/true", "Owner": "tester"}})):
        code, text = await refused(console, method, Id=f"{console.agent.instance}#99999.0", **arguments)
        assert (code, "create did not return this id" in text) == (Code.UNKNOWN_JOB, True)
    assert (await refused(console, "send", Id=job, Data=b"x"))[0] is Code.UNKNOWN_JOB


# -- orders ----------------------------------------------------------------------------------------------------


async def test_a_running_job_is_suspended_continued_held_released_and_removed(console: Console) -> None:
    job = await console.submit(**SLEEP)
    await console.until(job, 2)
    for method, status in (("SuspendJob", 7), ("ContinueJob", 2), ("HoldJob", 5), ("ReleaseJob", 1)):
        began = time.monotonic()
        await console.do(method, Id=job, Reason=f"because {method}")
        assert time.monotonic() - began < 5
        if status != 1:
            assert (await console.job(job))["JobStatus"] == status
    again = await console.until(job, 2)
    assert again["NumJobStarts"] == 2
    assert again["LastHoldReason"] == "because HoldJob"
    await console.do("RemoveJob", Id=job.partition("#")[2], Reason="enough")
    gone = await console.job(job)
    assert (gone["JobStatus"], gone["RemoveReason"]) == (3, "enough")
    steps = (await console.do("GetSteps", Id=job))["Steps"]
    assert [step["JobStatus"] for step in steps] == [1, 2, 7, 2, 5, 1, 2, 3]
    assert steps[4]["Why"] == "because HoldJob"


async def test_a_held_job_has_what_it_had_written(console: Console) -> None:
    job = await console.submit(Cmd="/bin/sh", Arguments="-c 'echo so far; exec sleep 100'")
    await console.until(job, 2)
    await console.do("HoldJob", Id=job)
    end = time.monotonic() + 20
    while "ResultSize" not in await console.job(job):
        assert time.monotonic() < end
        await asyncio.sleep(0.02)
    out = await console.call(f"job:{job}", "Fetch", File="_condor_stdout", Start=0, End=0)
    assert out["Data"] == b"so far\n"
    await console.do("RemoveJob", Id=job)


async def test_an_attribute_of_a_running_job_is_set_here_and_at_its_node(console: Console) -> None:
    job = await console.submit(**SLEEP)
    await console.until(job, 2)
    await console.do("SetJobAttribute", Id=job, Name="Stage", Value='"second"')
    assert (await console.job(job))["Stage"] == "second"
    await console.do("RemoveJob", Id=job)


async def test_orders_that_make_no_sense_say_why(console: Console) -> None:
    job = await console.submit()
    await console.until(job, 4)
    number = job.partition("#")[2]
    assert await refused(console, "HoldJob", Id=job) == (
        Code.WRONG_STATE, f"job {number} is Completed; only a job that is Idle or Running or Suspended can be held"
    )  # fmt: skip
    assert await refused(console, "RemoveJob", Id=job) == (Code.WRONG_STATE, f"job {number} is Completed already")
    assert await refused(console, "ReleaseJob", Id=job) == (
        Code.WRONG_STATE, f"job {number} is Completed; only a job that is Held can be released"
    )  # fmt: skip
    assert (await refused(console, "HoldJob", Id="77777.0")) == (
        Code.UNKNOWN_JOB, "job 77777.0 is unknown: never submitted here, or over and forgotten"
    )  # fmt: skip
    assert (await refused(console, "HoldJob", Id="nonsense"))[0] is Code.UNKNOWN_JOB
    assert (await refused(console, "SetJobAttribute", Id=job, Name="Foo", Value="1"))[0] is Code.WRONG_STATE
    assert (await refused(console, "SetJobAttribute", Id=job, Name="Owner", Value='"x"')) == (
        Code.PROTECTED, "attribute Owner is the agent's or a node's to set, as in HTCondor"
    )  # fmt: skip
    code, text = await refused(console, "SetJobAttribute", Id=job, Name="Foo", Value="1 +")
    assert (code, "column 4" in text) == (Code.BAD_VALUE, True)


async def test_a_job_that_no_node_could_start_is_held_with_the_nodes_reason(console: Console) -> None:
    job = await console.submit(Cmd="/no/such/program")
    held = await console.until(job, 5)
    assert "/no/such/program" in held["HoldReason"]
    await console.do("RemoveJob", Id=job)


# -- results ---------------------------------------------------------------------------------------------------


async def test_a_result_is_fetched_in_pieces(console: Console) -> None:
    script = "-c 'seq 1 60000; mkdir sub; echo deep > sub/file'"
    job = await console.submit(Cmd="/bin/sh", Arguments=script)
    await console.until(job, 4)
    wanted = "".join(f"{number}\n" for number in range(1, 60001)).encode()
    data = b""
    while True:
        piece = await console.call(f"job:{job}", "Fetch", File="_condor_stdout", Start=len(data), End=0)
        if not piece["Data"]:
            break
        data += piece["Data"]
    assert data == wanted
    assert piece["Size"] == len(wanted)
    server = f"jobserver:{console.agent.instance}"
    tail = await console.call(server, "FetchJobData", Id=job, File="_condor_stdout", Start=-6, End=0)
    assert tail["Data"] == b"60000\n"
    middle = await console.call(server, "FetchJobData", Id=job, File="_condor_stdout", Start=2, End=4)
    assert middle["Data"] == wanted[2:4]
    deep = await console.call(server, "FetchJobData", Id=job, File="sub/file", Start=0, End=0)
    assert deep["Data"] == b"deep\n"
    assert (await console.call(server, "GetJobAd", Id=job))["JobAd"]["Arguments"] == script


async def test_a_large_result_is_kept_on_the_disk_and_fetched_whole(console: Console) -> None:
    job = await console.submit(Cmd="/bin/sh", Arguments="-c 'head -c 300000 /dev/urandom > noise'")
    done = await console.until(job, 4)
    assert done["ResultSize"] > 300_000
    whole = b""
    while len(whole) < done["ResultSize"]:
        whole += (await console.call(f"job:{job}", "Fetch", File="", Start=len(whole), End=0))["Data"]
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        assert archive.getinfo("noise").file_size == 300_000
        assert archive.testzip() is None


@pytest.mark.parametrize("name", ["/etc/passwd", "../../../etc/passwd", "sub/../../x", "a\0b"])
async def test_a_hostile_name_is_refused(console: Console, name: str) -> None:
    job = await console.submit(Cmd="/bin/echo", Args="x")
    await console.until(job, 4)
    with pytest.raises(MethodFailed, match="is no name in a job's result"):
        await console.call(f"job:{job}", "Fetch", File=name, Start=0, End=0)


async def test_what_is_not_there_to_be_fetched_is_said(console: Console) -> None:
    job = await console.submit(Cmd="/bin/echo", Args="x")
    await console.until(job, 4)
    with pytest.raises(MethodFailed, match="its result has no file 'nothing'; it has _condor_st"):
        await console.call(f"job:{job}", "Fetch", File="nothing", Start=0, End=0)
    running = await console.submit(**SLEEP)
    await console.until(running, 2)
    with pytest.raises(MethodFailed, match="is Running and has no result yet"):
        await console.call(f"job:{running}", "Fetch", File="", Start=0, End=0)
    await console.do("RemoveJob", Id=running)


# -- objects ---------------------------------------------------------------------------------------------------


async def test_jobs_are_found_by_their_properties(console: Console) -> None:
    jobs = [await console.submit(Submission="found", Args=str(number)) for number in range(3)]
    for job in jobs:
        await console.until(job, 4)
    assert [job["CustomId"] for job in await console.objects("Job", Submission="found")] == jobs
    assert len(await console.objects("Job", Submission="found", JobStatus=4, Owner="tester")) == 3
    assert await console.objects("Job", Submission="found", JobStatus=1) == []
    assert [job["CustomId"] for job in await console.objects("Job", Submission="found", Args="1")] == [jobs[1]]
    number = int(jobs[0].partition("#")[2].partition(".")[0])
    assert [job["CustomId"] for job in await console.objects("Job", ClusterId=number)] == [jobs[0]]


async def test_a_query_by_constraint_answers_the_attributes_asked_for(console: Console) -> None:
    job = await console.submit(Submission="query", Args="7", JobPrio=3)
    await console.until(job, 4)
    answer = await console.do("QueryJobs", Constraint='Submission == "query" && JobPrio > 2', Attributes="JobPrio,Cmd")
    assert answer["Jobs"] == [{"JobPrio": 3, "Cmd": "/bin/true"}]
    assert answer["Next"] == 0
    assert (await console.do("QueryJobs", Constraint='Submission == "query"', Scope="queue"))["Jobs"] == []
    assert len((await console.do("QueryJobs", Constraint='Submission == "query"', Scope="history"))["Jobs"]) == 1
    assert (await refused(console, "QueryJobs", Constraint="Owner =="))[0] is Code.BAD_VALUE
    assert (await refused(console, "QueryJobs", Scope="nowhere"))[0] is Code.BAD_VALUE


async def test_slots_and_totals_are_shown(console: Console, agent: AgentProcess) -> None:
    job = await console.submit(**SLEEP)
    await console.until(job, 2)
    end = time.monotonic() + 20
    slots = await console.objects("Slot")
    while job not in [slot.get("JobId") for slot in slots]:
        assert time.monotonic() < end, slots
        await asyncio.sleep(0.05)
        slots = await console.objects("Slot")
    assert sorted(slot["Name"] for slot in slots) == [f"slot{number}@test-shared-agent" for number in (1, 2)]
    (mine,) = [slot for slot in slots if slot.get("JobId") == job]
    assert (mine["State"], mine["Activity"], mine["RemoteOwner"]) == ("Claimed", "Busy", "tester")
    (collector,) = await console.objects("Collector")
    assert (collector["HostsTotal"], collector["HostsClaimed"], collector["RunningJobs"]) == (2, 1, 1)
    (scheduler,) = await console.objects("Scheduler")
    assert scheduler["TotalRunningJobs"] == 1
    assert scheduler["JobsSubmittedCum"] >= 1
    (submitter,) = await console.objects("Submitter", Owner="tester")
    assert submitter["RunningJobs"] == 1
    await console.do("RemoveJob", Id=job)


async def test_methods_and_objects_that_do_not_exist_are_named(console: Console) -> None:
    with pytest.raises(MethodFailed) as caught:
        await console.do("Explode")
    assert caught.value.code == Code.UNKNOWN_METHOD
    with pytest.raises(MethodFailed) as caught:
        await console.call("scheduler:other", "echo", sequence=1, body="")
    assert caught.value.code == Code.UNKNOWN_OBJECT
    with pytest.raises(MethodFailed) as caught:
        await console.call("job:other#1.0", "GetAd")
    assert caught.value.code == Code.UNKNOWN_JOB
