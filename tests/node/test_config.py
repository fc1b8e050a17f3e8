"""Knobs: where their values come from, and what is wrong with those that can't be. And log lines."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from carod.cli import main
from carod.config import KNOBS, ConfigError, Settings, expand, load
from carod.log import JsonFormatter, TextFormatter, event


@pytest.fixture
def configured(tmp_path: Path):
    """Writes a configuration file (and those of config.d) and loads it."""

    def write(text: str, environ: dict[str, str] | None = None, overrides: Any = None, **further: str) -> Settings:
        file = tmp_path / "carod.conf"
        file.write_text(text)
        (tmp_path / "config.d").mkdir(exist_ok=True)
        for name, content in further.items():
            (tmp_path / "config.d" / name).write_text(content)
        return load(str(file), environ or {}, overrides)

    return write


def test_without_any_file_all_is_default() -> None:
    settings = load(environ={"HOME": "/nonexistent"})
    assert {setting.source for setting in settings.table} == {"default"}
    assert settings.config.carod_broker_queue == "grid"


def test_names_have_no_case_and_values_their_type(configured) -> None:
    config = configured("num_slots = 7\nStarter_Update_Interval=1.5\nSTARTER_ALLOW_RUNAS_OWNER = true\n").config
    assert (config.num_slots, config.starter_update_interval, config.starter_allow_runas_owner) == (7, 1.5, True)


def test_comments_blank_lines_and_a_later_line_of_the_same_name(configured) -> None:
    assert configured("# a comment\n\n  NUM_SLOTS = 1\nNUM_SLOTS = 2\n").config.num_slots == 2


def test_a_backslash_continues_a_line(configured) -> None:
    assert configured("START = A > 1 && \\\n  B > 2\nNUM_SLOTS = 3").config.start.split() == "A > 1 && B > 2".split()


def test_names_stand_for_values_and_defaults(configured) -> None:
    settings = configured("BASE = /srv\nEXECUTE = $(BASE)/$(missing:jobs)/$ENV(WHO)$(nothing)", {"WHO": "me"})
    assert settings.config.execute == "/srv/jobs/me"


def test_a_name_may_stand_for_a_knobs_default(configured) -> None:
    assert configured("CAROD_BROKER_QUEUE = $(LOG_LEVEL)-queue").config.carod_broker_queue == "info-queue"


@pytest.mark.parametrize(
    "text", ["A = $(B)\nB = $(A)\nEXECUTE = $(A)", "EXECUTE = $(EXECUTE)", "EXECUTE = $(EXECUTE)$(EXECUTE)"]
)
def test_names_that_stand_for_each_other_are_refused(configured, text: str) -> None:
    with pytest.raises(ConfigError, match="without end"):
        configured(text)


def test_files_of_config_d_come_after_in_the_order_of_their_names(configured) -> None:
    settings = configured(
        "NUM_SLOTS = 1\nLOG_LEVEL = debug",
        **{"20-b": "NUM_SLOTS = 3", "10-a": "NUM_SLOTS = 2", ".hidden": "NUM_SLOTS = 9"},
    )
    assert (settings.config.num_slots, settings.config.log_level) == (3, "debug")
    (slots,) = [setting for setting in settings.table if setting.name == "NUM_SLOTS"]
    assert slots.source.endswith("20-b, line 1")


def test_the_environment_comes_after_the_files_and_the_command_line_last(configured) -> None:
    environ = {"_CAROD_NUM_SLOTS": "2", "_carod_log_level": "debug", "_CAROD_BROKER_QUEUE": "other"}
    settings = configured("NUM_SLOTS = 1\nLOG_LEVEL = error", environ, {"NUM_SLOTS": 4})
    assert (settings.config.num_slots, settings.config.log_level) == (4, "debug")
    assert settings.config.carod_broker_queue == "other"
    assert {setting.name: setting.source for setting in settings.table if setting.source != "default"} == {
        "NUM_SLOTS": "command line", "LOG_LEVEL": "environment _carod_log_level",
        "CAROD_BROKER_QUEUE": "environment _CAROD_BROKER_QUEUE",
    }  # fmt: skip


def test_carod_config_in_the_environment_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "my.conf").write_text("NUM_SLOTS = 5")
    assert load(environ={"CAROD_CONFIG": str(tmp_path / "my.conf")}).config.num_slots == 5


@pytest.mark.parametrize(
    ("text", "wanted"), [("512", 512), ("4K", 4096), ("100M", 100 << 20), ("2 GiB", 2 << 30), ("1tb", 1 << 40)]
)
def test_bytes_may_have_a_unit(configured, text: str, wanted: int) -> None:
    assert configured(f"MAX_RESULT_SIZE = {text}").config.max_result_size == wanted


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("NUM_SLOTS = many", ("NUM_SLOTS", "'many'", "whole number", "line 1")),
        ("NUM_SLOTS = -1", ("NUM_SLOTS", "-1", "0")),
        ("NUM_SLOTS = 5000", ("NUM_SLOTS", "5000", "1024")),
        ("STARTER_UPDATE_INTERVAL = soon", ("STARTER_UPDATE_INTERVAL", "'soon'", "a number")),
        ("STARTER_UPDATE_INTERVAL = nan", ("STARTER_UPDATE_INTERVAL", "nan")),
        ("KILLING_TIMEOUT = inf", ("KILLING_TIMEOUT", "inf")),
        ("KILLING_TIMEOUT = -1", ("KILLING_TIMEOUT", "-1.0", "not below 0")),
        ("STARTER_ALLOW_RUNAS_OWNER = perhaps", ("STARTER_ALLOW_RUNAS_OWNER", "'perhaps'", "TRUE or FALSE")),
        ("MAX_RESULT_SIZE = 5X", ("MAX_RESULT_SIZE", "'5X'")),
        ("STARTD_NAME = a b", ("STARTD_NAME", "'a b'", "spaces")),
        ("STARTD_NAME = a/b", ("STARTD_NAME", "'a/b'")),
        ("CAROD_BROKER_QUEUE = ", ("CAROD_BROKER_QUEUE", "''")),
        ("CAROD_BROKER_HEARTBEAT = 0", ("CAROD_BROKER_HEARTBEAT", "1 to 3600")),
        ("LOG_FORMAT = xml", ("LOG_FORMAT", "'xml'", "text or json")),
        ("LOG_LEVEL = loud", ("LOG_LEVEL", "'loud'", "debug, info")),
        ("what is this", ("what is this", "NAME = value", "line 1")),
    ],
)
def test_a_setting_that_cannot_be_is_told_with_its_place_and_the_mend(
    configured, line: str, parts: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(line)
    for part in (*parts, "carod.conf"):
        assert part in str(caught.value)


def test_a_file_that_is_not_there_is_told() -> None:
    with pytest.raises(ConfigError, match=r"'/no/such\.conf' does not exist"):
        load("/no/such.conf", {})


def test_a_file_that_is_not_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "carod.conf").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"carod\.conf"):
        load(str(tmp_path / "carod.conf"), {})


def test_a_name_that_nothing_reads_is_warned_of_with_the_nearest(configured) -> None:
    (warning,) = configured("NUM_SLOT = 3").warnings
    assert "line 1: nothing reads NUM_SLOT; did you mean NUM_SLOTS?" in warning


def test_names_that_startd_attrs_or_others_read_are_not_warned_of(configured) -> None:
    assert configured("STARTD_ATTRS = Colour\nCOLOUR = red\nBASE = /x\nEXECUTE = $(BASE)").warnings == []


@given(st.text(), st.dictionaries(st.sampled_from("AB"), st.text(max_size=20)))
def test_any_text_is_expanded_or_refused(text: str, macros: dict[str, str]) -> None:
    try:
        expand(text, macros, {}, {})
    except ConfigError as error:
        assert "without end" in str(error)


# -- the command -----------------------------------------------------------------------------------------------


def run(*arguments: str, **environ: str):
    return CliRunner().invoke(main, ["config", *arguments], env={"HOME": "/nonexistent", **environ})


def test_carod_config_prints_every_knob_with_its_value_and_where_it_comes_from() -> None:
    done = run(_CAROD_NUM_SLOTS="3")
    assert done.exit_code == 0
    assert set(KNOBS) <= set(re.findall(r"^([A-Z_]+)", done.stdout, re.MULTILINE))
    assert "environment _CAROD_NUM_SLOTS" in done.stdout


def test_carod_config_prints_json() -> None:
    rows = {row["name"]: row for row in json.loads(run("--json", _CAROD_NUM_SLOTS="3").stdout)}
    assert set(rows) == set(KNOBS)
    assert rows["NUM_SLOTS"]["value"] == 3
    assert rows["NUM_SLOTS"]["default"] == 0


def test_carod_config_prints_the_knobs_it_is_asked_for() -> None:
    done = run("num_slots", "execute", "--json")
    assert [row["name"] for row in json.loads(done.stdout)] == ["NUM_SLOTS", "EXECUTE"]
    done = run("NUM_SLOT")
    assert (done.exit_code, "NUM_SLOT" in done.output) == (2, True)


def test_carod_config_tells_what_is_wrong() -> None:
    done = run(_CAROD_NUM_SLOTS="x")
    assert (done.exit_code, "environment _CAROD_NUM_SLOTS" in done.output) == (1, True)


# -- log lines -------------------------------------------------------------------------------------------------


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def record(what: str, **fields: Any) -> logging.LogRecord:
    logger, kept = logging.Logger("test"), Kept()
    logger.addHandler(kept)
    event(logger, what, **fields)
    return kept.records[0]


@given(st.text(max_size=50), st.text(max_size=50))
def test_a_log_line_is_one_line_whatever_is_in_it(what: str, value: str) -> None:
    item = record(what, job=value)
    text = TextFormatter().format(item)
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    line = JsonFormatter().format(item)
    assert len(line.splitlines()) == 1
    assert (json.loads(line)["event"], json.loads(line)["job"]) == (what, value)


def test_a_text_line_quotes_what_has_spaces() -> None:
    text = TextFormatter().format(record("job exited", job="a b", code=3, empty=""))
    assert text.endswith(' INFO job exited job="a b" code=3 empty=""')


def test_an_exception_is_in_both_forms() -> None:
    try:
        raise ValueError("oh")
    except ValueError:
        item = logging.LogRecord("x", logging.ERROR, "f", 1, "failed", (), __import__("sys").exc_info())
    assert "ValueError: oh" in TextFormatter().format(item)
    assert "ValueError: oh" in json.loads(JsonFormatter().format(item))["exception"]
