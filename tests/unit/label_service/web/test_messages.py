"""Messages as JSON: one object a line, whatever they quote."""

import json
import logging
import sys

from label_service.web.messages import ACCESS_LOG, JsonLines


def record(name="label_service.service", message="a message", *arguments, exc_info=None):
    return logging.LogRecord(name, logging.ERROR, "file.py", 1, message, arguments, exc_info)


def test_a_message_is_one_object_with_time_level_and_logger():
    """The time is UTC, as in the log's entries."""
    first = record("label_service.service", "%d labels in %s", 3, "a place")
    first.created = 0.25
    assert json.loads(JsonLines().format(first)) == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "error",
        "logger": "label_service.service",
        "message": "3 labels in a place",
    }


def test_a_request_is_fields_and_no_text():
    """What a collector filters by needs no parsing."""
    line = json.loads(JsonLines().format(record(ACCESS_LOG, "%(status)d %(run)s", {"status": 200, "run": "guest"})))
    assert (line["status"], line["run"]) == (200, "guest")
    assert "message" not in line


def test_a_mapping_of_another_logger_keeps_its_message():
    """Only the access log's parts are fields."""
    line = json.loads(JsonLines().format(record("uvicorn.error", "%(time)s is up", {"time": "it"})))
    assert line["message"] == "it is up" and line["time"] != "it"


def test_no_line_break_or_control_character_leaves_its_string():
    """Whoever chooses a part of a message cannot begin a line of their own or steer a terminal."""
    hostile = 'x\n{"level": "info"}\r\u2028\x1b[2J\ud800'
    line = JsonLines().format(record("label_service.web", "sent: %s", hostile))
    assert line.isascii() and line.isprintable()
    assert json.loads(line)["message"] == f"sent: {hostile}"


def test_a_traceback_is_a_field_of_the_same_line():
    """A fault does not break the format."""
    try:
        raise ValueError("two\nlines")
    except ValueError:
        line = JsonLines().format(record(exc_info=sys.exc_info()))
    assert len(line.splitlines()) == 1
    assert "ValueError: two\nlines" in json.loads(line)["traceback"]
