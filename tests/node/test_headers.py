"""Section 2 of the wire contract, "Application headers = the job ClassAd", from the wire to a running job and back."""

from __future__ import annotations

import datetime
import math
import uuid

import pytest

from tests.node.client import Client, zipped
from tests.node.conftest import Node
from tests.node.wire import Wire, array, double, properties, raw_table, table, text, timestamp


async def run_raw(client: Client, wire: Wire, headers: bytes, body: bytes = b""):
    """Submit a job whose headers are the bytes of a field table."""
    job = str(uuid.uuid4())
    await wire.publish(
        client.job_queue,
        properties(headers=headers, reply_to=client.reply_to.encode(), message_id=job.encode()),
        body,
    )
    return await client.end(job)


# -- types -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 1, -1, 2**31 - 1, -(2**31), 2**31, 2**53 + 1, 2**63 - 1, -(2**63)])
async def test_an_integer_header_is_that_integer(client: Client, value: int) -> None:
    reply = await client.run({"Cmd": "/bin/true", "Number": value})
    assert (reply.status, reply.headers["Number"]) == (4, value)


@pytest.mark.parametrize("value", [math.pi, 1e300, -0.1, 5e-324, 2.0])
async def test_a_float_header_keeps_its_64_bits(client: Client, wire: Wire, value: float) -> None:
    reply = await run_raw(client, wire, table(Cmd=text("/bin/true"), Number=double(value)))
    assert (reply.status, reply.headers["Number"]) == (4, value)
    assert isinstance(reply.headers["Number"], float)


@pytest.mark.parametrize("value", [True, False])
async def test_a_boolean_header_is_that_boolean(client: Client, value: bool) -> None:
    reply = await client.run({"Cmd": "/bin/true", "Flag": value})
    assert (reply.status, reply.headers["Flag"]) == (4, value)


async def test_a_timestamp_header_is_an_integer_of_seconds(client: Client) -> None:
    when = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)
    reply = await client.run({"Cmd": "/bin/true", "When": when})
    assert (reply.status, reply.headers["When"]) == (4, int(when.timestamp()))


async def test_a_string_header_is_classad_source_text(client: Client) -> None:
    reply = await client.run(
        {"Cmd": '"/bin/cat"', "Arguments": '".job.ad"', "Flag": "TRUE", "Count": "1 + 2", "Name": '"a \\"b\\""'}
    )
    assert {"Flag = true", "Count = 1 + 2", 'Name = "a \\"b\\""'} <= set(reply.out.splitlines())
    assert reply.headers["Flag"] is True
    assert reply.headers["Count"] == "1 + 2"
    assert reply.headers["Name"] == '"a \\"b\\""'


async def test_an_expression_header_is_evaluated_against_the_slot(client: Client) -> None:
    limit = "ifThenElse(TARGET.TotalSlots == MY.Slots, 0.1, 1000)"
    reply = await client.run({"Cmd": "/bin/sleep", "Arguments": "1000", "AllowedExecuteDuration": limit, "Slots": 2})
    assert (reply.status, reply.headers["HoldReasonCode"]) == (5, 47)


async def test_a_string_expression_is_evaluated(client: Client) -> None:
    reply = await client.run({"Cmd": "/bin/echo", "Arguments": 'strcat("hello", " ", 7)'})
    assert reply.out == "hello 7\n"


async def test_names_of_headers_have_no_case(client: Client) -> None:
    reply = await client.run({"cMD": "/bin/echo", "ARGUMENTS": "hello", "uNIVERSE": 1, "jobuniverse": 12})
    assert (reply.status, reply.out) == (4, "hello\n")


async def test_an_attribute_nobody_knows_rides_along_and_comes_back(client: Client) -> None:
    reply = await client.run({"Cmd": "/bin/true", "MyOwnThing": '"blue"', "Later": "time() + 60"})
    assert (reply.headers["MyOwnThing"], reply.headers["Later"]) == ('"blue"', "time() + 60")


async def test_lists_and_tables_are_classad_lists_and_ads(client: Client) -> None:
    reply = await client.run({"Cmd": "/bin/true", "Sizes": [1, 2, "3"], "Inner": {"A": 1, "B": "x"}})
    assert reply.status == 4
    assert reply.headers["Sizes"].replace(" ", "") == "{1,2,3}"
    assert reply.headers["Inner"].replace(" ", "") == "[A=1;B=x]"


async def test_a_header_without_value_is_undefined(client: Client) -> None:
    reply = await client.run({"Cmd": "/bin/true", "Nothing": None})
    assert (reply.status, reply.headers["Nothing"]) == (4, "undefined")


# -- bare strings ----------------------------------------------------------------------------------------------

STRINGS = ["Cmd", "Args", "Arguments", "Iwd", "In", "Out", "Err", "Owner", "Env", "Environment", "TransferOutput",
           "KillSig", "Submission"]  # fmt: skip
BARE = {
    "Cmd": ("/bin/echo", {}),
    "Args": ("-n hello", {}),
    "Arguments": ("hello 'you there'", {}),
    "Iwd": ("sub", {}),
    "In": ("sub/input", {}),
    "Out": ("out.txt", {}),
    "Err": ("err.txt", {}),
    "Owner": ("alice", {}),
    "Env": ("A=1;B=2", {}),
    "Environment": ("A=1 B='2 3'", {}),
    "TransferOutput": ("a,b", {}),
    "KillSig": ("SIGINT", {}),
    "Submission": ("nightly run", {}),
}


@pytest.mark.parametrize("name", STRINGS)
async def test_a_bare_string_is_taken_as_the_string_itself(client: Client, name: str) -> None:
    value = BARE[name][0]
    reply = await client.run({"Cmd": "/bin/true", name: value}, zipped({"sub/input": b""}))
    assert (reply.status, reply.headers[name]) == (4, f'"{value}"'), reply.headers


@pytest.mark.parametrize("value", ["TRUE", "undefined", "5", "a.b", "-l", "x y", 'say "hi"', "{1}", "1 +", "Cmd"])
async def test_what_is_no_string_expression_is_a_bare_string(client: Client, value: str) -> None:
    reply = await client.run({"Cmd": "/bin/echo", "Args": value})
    assert (reply.status, reply.out) == (4, value + "\n")


# -- what does not parse ---------------------------------------------------------------------------------------


async def test_a_header_that_does_not_parse_is_named_with_its_text_and_where_parsing_stopped(client: Client) -> None:
    reply = await client.run({"Cmd": "/bin/true", "Requirements": "Memory > 10)"})
    assert (reply.status, reply.state) == (5, None)
    assert reply.body.startswith(b"ERROR:")
    for part in ("Requirements", "Memory > 10)", "column 12"):
        assert part in reply.body.decode(), reply.body
    assert "Requirements" in reply.headers["HoldReason"]
    assert reply.headers["HoldReasonCode"] == 21


async def test_an_unquoted_string_is_answered_with_how_to_quote_it(client: Client) -> None:
    reply = await client.run({"Cmd": "/bin/true", "Colour": "light blue"})
    assert reply.status == 5
    assert '"light blue"' in reply.body.decode()


async def test_a_job_with_a_bad_header_is_copied_to_the_dead_letter_queue(client: Client) -> None:
    reply_to = client.reply_to
    job = await client.submit({"Cmd": "/bin/true", "Rank": "1 +"}, b"the body")
    assert (await client.end(job)).status == 5
    dead = await client.buried(job)
    assert (dead.body, dead.properties.reply_to) == (b"the body", reply_to)
    assert "Rank" in dead.headers["DeadReason"]
    assert dead.headers["Rank"] == "1 +"


async def test_text_that_is_not_utf8_is_answered_with_the_headers_name(client: Client, wire: Wire) -> None:
    reply = await run_raw(client, wire, table(Cmd=text("/bin/true"), Colour=text(b"bl\xe4u")))
    assert reply.status == 5
    assert "Colour" in reply.body.decode()
    assert "UTF-8" in reply.body.decode()


# -- hostile headers -------------------------------------------------------------------------------------------


async def test_headers_of_the_broker_are_no_attributes(client: Client) -> None:
    reply = await client.run({"Cmd": "/bin/true", "x-thing": "1 +", "x-other": [{"count": 1}]})
    assert reply.status == 4
    assert not [name for name in reply.headers if name.startswith("x-")]


async def test_a_job_kept_as_dead_goes_nowhere_else_for_its_cc_header(client: Client, node: Node) -> None:
    job = await client.submit({"CC": [client.job_queue], "BCC": [client.job_queue], "Tag": '"cc"'})
    assert (await client.end(job)).status == 5
    await client.buried(job)
    assert (await client.run({"Cmd": "/bin/true"})).status == 4
    await node.seen("to the dead-letter queue", job=job)
    assert len(node.events("to the dead-letter queue", job=job)) == 1
    assert client.waiting(job) == 0


@pytest.mark.parametrize("source", ["1e999", "-1e999", 'real("NaN")', 'real("INF")'])
async def test_numbers_that_no_broker_takes_travel_as_source_text(client: Client, source: str) -> None:
    reply = await client.run({"Cmd": "/bin/true", "Number": source})
    assert reply.status == 4
    assert reply.headers["Number"].replace("-", "") in ('real("INF")', 'real("NaN")')


@pytest.mark.parametrize("value", [2**40, 2**62, 2**63 - 1])
async def test_a_timestamp_beyond_all_years_is_an_integer(client: Client, wire: Wire, value: int) -> None:
    reply = await run_raw(client, wire, table(Cmd=text("/bin/true"), When=timestamp(value)))
    assert (reply.status, reply.headers["When"]) == (4, value)


async def test_an_integer_beyond_64_bits_is_answered_with_the_headers_name(client: Client, wire: Wire) -> None:
    reply = await run_raw(client, wire, table(Cmd=text("/bin/true"), When=timestamp(2**64 - 1)))
    assert reply.status == 5
    assert "When" in reply.body.decode()
    assert "18446744073709551615" in reply.body.decode()
    dead = await wire.get(f"{client.job_queue}.dead")
    while dead is None or timestamp(2**64 - 1) not in dead[0]:  # as it came, which no client library reads
        dead = await wire.get(f"{client.job_queue}.dead")


async def test_tables_nested_without_end_cost_no_slot(client: Client, wire: Wire) -> None:
    inner = b"t\x01"
    for _ in range(40):
        inner = array(inner)
    job = str(uuid.uuid4())
    headers = table(Deep=inner)
    await wire.publish(
        client.job_queue, properties(headers=headers, reply_to=client.reply_to.encode(), message_id=job.encode())
    )
    dead = await client.buried(lambda message: "nested" in str(message.headers.get("DeadReason")))
    assert "no reply_to" in dead.headers["DeadReason"]


async def test_tables_nested_deep_come_back_as_they_were(client: Client, wire: Wire) -> None:
    inner = b"t\x01"
    for _ in range(30):
        inner = array(inner)
    reply = await run_raw(client, wire, table(Cmd=text("/bin/true"), Deep=inner))
    assert (reply.status, reply.headers["Deep"].count("{")) == (4, 30)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("(" * 5000 + "1" + ")" * 5000, id="parentheses"),
        pytest.param("!" * 5000 + "TRUE", id="operators"),
        pytest.param("+".join(["1"] * 20000), id="sum"),
        pytest.param("{" * 5000 + "}" * 5000, id="lists"),
        pytest.param("[a=" * 3000 + "1" + "]" * 3000, id="ads"),
        pytest.param("1?" * 5000 + "1" + ":1" * 5000, id="choices"),
    ],
)
@pytest.mark.parametrize("name", ["Requirements", "Deep", "Arguments"])
async def test_an_expression_nested_deep_is_answered(client: Client, name: str, source: str) -> None:
    job = await client.submit({"Cmd": "/bin/true", name: source})
    reply = await client.until(job, lambda reply: reply.status != 2)
    assert reply.status in (1, 4, 5)
    if reply.status == 1:  # its Requirements have no value here: it would be offered again and again
        await client.take(client.job_queue)


async def test_an_expression_that_refers_to_itself_is_answered(client: Client) -> None:
    reply = await client.run({"Cmd": "/bin/true", "A": "B + 1", "B": "A + 1", "Arguments": "strcat(A)"})
    assert reply.status in (4, 5)


async def test_a_header_name_that_is_not_utf8_costs_no_slot(client: Client, wire: Wire, node: Node) -> None:
    job, answers = str(uuid.uuid4()), f"{client.job_queue}-answers"
    await client.channel.queue_declare(answers)
    headers = raw_table({b"Cmd": text("/bin/true"), b"na\xefve": text("1")})
    await wire.publish(
        client.job_queue, properties(headers=headers, reply_to=answers.encode(), message_id=job.encode())
    )
    await node.seen("job exited", job=job)
    received = await wire.get(answers)
    while received is None or b"ExitCode" not in received[0]:
        received = await wire.get(answers) or received
    await client.channel.queue_delete(answers)


async def test_two_headers_that_differ_by_case_only_are_one_attribute(client: Client) -> None:
    reply = await client.run({"Cmd": "/bin/true", "Colour": '"red"', "colour": '"blue"'})
    assert (reply.status, reply.ad["colour"]) == (4, '"blue"')


async def test_a_client_cannot_say_what_only_a_node_says(client: Client) -> None:
    headers = {"ExitSignal": 9, "HoldReason": '"mine"', "TransferOutputRefused": "1"}
    reply = await client.run({"Cmd": "/bin/true", **headers})
    assert reply.status == 4
    assert not {"exitsignal", "holdreason", "transferoutputrefused"} & set(reply.ad)


async def test_an_attribute_may_have_any_name(client: Client) -> None:
    reply = await client.run({"Cmd": "/bin/true", "with space": 1, "a=b\nc": '"x"', "": 3, "é" * 100: 4})
    assert reply.status == 4
    assert reply.headers["a=b\nc"] == '"x"'


async def test_the_environment_of_a_job_holds_what_its_header_says_and_no_more(client: Client) -> None:
    headers = {"Cmd": "/usr/bin/env", "Environment": "A=1 B='2 '' 3' C=", "Env": "D=4"}
    reply = await client.run(headers)
    lines = reply.out.splitlines()
    assert {"A=1", "B=2 ' 3", "C="} <= set(lines)
    assert not [line for line in lines if line.startswith(("D=", "_CAROD", "SECRET"))]
    assert {line.partition("=")[0] for line in lines} == {
        "A", "B", "C", "PATH", "HOME", "TMPDIR",
        "_CONDOR_SCRATCH_DIR", "_CONDOR_SLOT", "_CONDOR_JOB_AD", "_CONDOR_MACHINE_AD",
    }  # fmt: skip
