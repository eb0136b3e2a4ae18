"""Who hears a line of the log: structlog as the host configured it, else the standard logger."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from reclaimactors.log import log

LINES = """
from reclaimactors.log import log
ours = log.bind(memory="m", nid=0)
ours.debug("d")
ours.info("i")
ours.warning("w", why="it is so")
try:
    raise KeyError("k")
except KeyError as exc:
    ours.error("e", exc_info=exc)
"""


def output_of(host: str) -> tuple[list[str], list[str]]:
    """Run a host that says four lines; return those of stdout and of stderr."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import logging\n{host}\n{LINES}"],
        capture_output=True, text=True, check=True, timeout=50,
    )  # fmt: skip
    return ended.stdout.splitlines(), ended.stderr.splitlines()


def test_without_a_host_that_listens_errors_go_to_stderr_and_say_whose_they_are():
    stdout, (line, *trace) = output_of("")
    assert stdout == []
    assert line == "reclaimactors: e memory='m' nid=0"
    assert trace[0].startswith("Traceback")
    assert trace[-1] == "KeyError: 'k'"


@pytest.mark.parametrize(
    ("level", "shown"),
    [("DEBUG", "DIWE"), ("INFO", "IWE"), ("WARNING", "WE"), ("ERROR", "E"), ("CRITICAL", "")],
)
def test_a_host_with_logging_gets_what_its_level_says(level, shown):
    _, stderr = output_of(f"logging.basicConfig(level='{level}', format='%(levelname).1s %(name)s %(message)s')")  # fmt: skip # noqa: E501
    heads = [line for line in stderr if " reclaimactors " in line]
    assert "".join(line[0] for line in heads) == shown
    if "W" in shown:
        assert "W reclaimactors w memory='m' nid=0 why='it is so'" in heads
    assert ("KeyError: 'k'" in stderr) == ("E" in shown)


def test_a_host_can_have_silence():
    silence = "logging.getLogger('reclaimactors').addHandler(logging.NullHandler())"
    assert output_of(silence) == ([], [])


def test_a_host_that_sets_up_logging_after_the_import_is_heard_as_well():
    host = "import reclaimactors.opening, logging.config; logging.config.dictConfig({'version': 1,"
    host += "'handlers': {'h': {'class': 'logging.StreamHandler'}}, 'root': {'handlers': ['h']}})"
    _, stderr = output_of(host)
    assert "e memory='m' nid=0" in stderr


CONFIGURED_LATER = """
import logging.config
logging.config.dictConfig({'version': 1, 'handlers': {'h': {'class': 'logging.StreamHandler',
    'stream': 'ext://sys.stdout'}}, 'root': {'handlers': ['h'], 'level': 'DEBUG'}})
"""


def test_lines_that_nobody_heard_leave_no_logger_for_the_host_to_disable():
    stdout, stderr = output_of(
        "from reclaimactors.log import log; log.debug('unheard'); log.warning('unheard')"
        f"{CONFIGURED_LATER}"
    )
    assert stderr == []
    assert [line[0] for line in stdout if " memory='m' nid=0" in line] == ["d", "i", "w", "e"]


def test_a_logger_that_the_host_disables_after_a_line_was_heard_says_errors_by_the_root():
    stdout, [first] = output_of(
        f"from reclaimactors.log import log; log.error('first'){CONFIGURED_LATER}"
    )
    assert first == "reclaimactors: first "
    assert stdout[0] == "reclaimactors: e memory='m' nid=0"
    assert stdout[-1] == "KeyError: 'k'"


@pytest.mark.parametrize(
    "silence",
    [
        "logging.getLogger('reclaimactors').setLevel(60)",
        "logging.getLogger().setLevel(60)",
        "logging.disable(60)",
        "logging.getLogger().addHandler(logging.NullHandler())",
    ],
)
def test_a_host_can_have_silence_of_a_disabled_logger_as_well(silence):
    disabled = "logging.getLogger('reclaimactors').disabled = True"
    assert output_of(f"{disabled}; {silence}") == ([], [])


def test_a_disabled_logger_and_no_handler_leave_errors_to_the_last_resort():
    stdout, stderr = output_of("logging.getLogger('reclaimactors').disabled = True")
    assert stdout == []
    assert stderr[0] == "reclaimactors: e memory='m' nid=0"


JSON = "processors=[structlog.processors.add_log_level, structlog.processors.format_exc_info, "
JSON += "structlog.processors.JSONRenderer()]"


@pytest.mark.parametrize(
    ("wrapper", "shown"),
    [
        ("structlog.make_filtering_bound_logger(logging.WARNING)", "we"),
        ("structlog.BoundLogger", "diwe"),  # it has no method `log`
    ],
    ids=["filtering", "generic"],
)
def test_a_host_with_structlog_gets_the_lines_as_its_own(wrapper, shown):
    stdout, stderr = output_of(
        f"import structlog; structlog.configure(wrapper_class={wrapper}, {JSON})"
    )
    lines = [json.loads(line) for line in stdout]
    assert stderr == []
    assert "".join(line["event"] for line in lines) == shown
    assert all((line["memory"], line["nid"]) == ("m", 0) for line in lines)
    assert lines[-1]["level"] == "error"
    assert lines[-1]["exception"].endswith("KeyError: 'k'")


def test_a_host_with_structlog_over_logging_gets_them_under_our_name():
    stdout, stderr = output_of(
        "import structlog; logging.basicConfig(format='%(name)s %(message)s');"
        "structlog.configure(logger_factory=structlog.stdlib.LoggerFactory(),"
        f"wrapper_class=structlog.stdlib.BoundLogger, {JSON})"
    )
    assert stdout == []
    assert [line.partition(" ")[0] for line in stderr] == ["reclaimactors"] * 2


ASYNC = """
import structlog, sys
class Awaited(structlog.BoundLogger):
    async def debug(self, event, **facts): self._proxy_to_logger("debug", event, **facts)
    info = warning = error = debug
"""


@pytest.mark.parametrize("wrapper", ["structlog.stdlib.AsyncBoundLogger", "Awaited"])
def test_a_host_whose_bound_logger_is_awaited_gets_the_lines_at_once(wrapper):
    stdout, stderr = output_of(f"{ASYNC}structlog.configure(wrapper_class={wrapper}, {JSON})")
    assert stderr == []
    lines = [json.loads(line) for line in stdout]
    assert [(line["level"], line["event"]) for line in lines] == [
        ("debug", "d"), ("info", "i"), ("warning", "w"), ("error", "e"),
    ]  # fmt: skip
    assert {(line["memory"], line["nid"]) for line in lines} == {("m", 0)}


def test_an_awaited_logger_that_cannot_be_told_by_its_class_is_told_on_stderr():
    made = "lambda logger, processors, context: Awaited(logger, processors, context)"
    stdout, stderr = output_of(f"{ASYNC}structlog.configure(wrapper_class={made}, {JSON})")
    assert stdout == []
    assert not any("never awaited" in line for line in stderr)
    assert "Message: 'e'" in stderr
    assert "TypeError: a line is said at once, and this logger's methods are coroutines" in stderr


def test_a_host_with_structlog_over_a_disabled_logger_gets_errors_from_the_root():
    _, stderr = output_of(
        "import structlog; logging.basicConfig(format='%(name)s %(message)s', level='DEBUG');"
        "structlog.configure(logger_factory=structlog.stdlib.LoggerFactory(),"
        "wrapper_class=structlog.stdlib.BoundLogger,"
        f"processors=[structlog.stdlib.filter_by_level, *[{JSON.partition('[')[2]}]);"
        "logging.getLogger('reclaimactors').disabled = True"
    )
    [line] = stderr
    assert line.startswith("root ")
    assert json.loads(line.partition(" ")[2])["event"] == "e"


def test_a_host_that_imports_structlog_and_configures_nothing_gets_no_print():
    stdout, stderr = output_of("import structlog")
    assert stdout == []
    assert len([line for line in stderr if line.startswith("reclaimactors: ")]) == 1


def test_what_is_bound_stays_with_its_logger(caplog):
    first = log.bind(memory="a", nid=0)
    first.bind(memory="b").warning("w")
    first.warning("w", nid=1)
    log.warning("w")
    assert [record.getMessage().strip() for record in caplog.records] == [
        "w memory='b' nid=0",
        "w memory='a' nid=1",
        "w",
    ]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


# what cannot be said


@pytest.fixture
def bug():
    """A handler of the host's that raises, whatever it is told."""

    class Handler(logging.Handler):
        def emit(self, record):
            raise ZeroDivisionError("a bug in a handler")

    logger, handler = logging.getLogger("reclaimactors"), Handler()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_a_handler_that_raises_is_told_on_stderr_with_the_line_and_stops_nobody(bug, capsys):
    log.bind(memory="m").error("e", why="it is so")
    out, err = capsys.readouterr()
    assert out == ""
    assert "ZeroDivisionError: a bug in a handler" in err
    assert "Message: 'e'" in err
    assert "'memory': 'm', 'why': 'it is so'" in err
    assert __file__ in err, "it says whose line it was"


def test_who_wants_no_errors_of_logging_itself_gets_none(bug, capsys, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log.error("e")
    assert capsys.readouterr() == ("", "")


class Full:
    def write(self, text):
        raise OSError("the disk is full")


@pytest.mark.parametrize("stderr", [None, Full()], ids=["none", "full"])
def test_a_stderr_that_takes_nothing_stops_nobody(bug, monkeypatch, stderr):
    monkeypatch.setattr(sys, "stderr", stderr)
    log.error("e")


def test_a_processor_of_structlog_that_raises_is_told_on_stderr():
    stdout, stderr = output_of(
        "import structlog\n"
        "def processor(*line): raise ZeroDivisionError('a bug in a processor')\n"
        "structlog.configure(processors=[processor])"
    )
    assert stdout == []
    assert stderr.count("ZeroDivisionError: a bug in a processor") == 4
    assert "Message: 'e'" in stderr


def test_a_structlog_that_cannot_be_imported_is_told_on_stderr():
    _, stderr = output_of("import sys; sys.modules['structlog.processors'] = None")
    assert "Message: 'e'" in stderr
    assert any("KeyError('k')" in line for line in stderr)
