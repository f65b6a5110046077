"""Log lines as JSON objects, one a line, for what collects logs."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import Any

from serving import request_ids


class JsonFormatter(logging.Formatter):
    """Of an exception only its kind and the lines of code: its message may quote what a customer wrote."""

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if (request_id := request_ids.current()) is not None:
            said["requestId"] = request_id
        if record.exc_info and record.exc_info[0] is not None:
            said["exception"] = record.exc_info[0].__name__
            said["stack"] = "".join(traceback.format_tb(record.exc_info[2]))
        return json.dumps(said, ensure_ascii=False)


def install() -> None:
    """Have every handler of this process write JSON."""
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.Logger.manager.loggerDict)]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        handler.setFormatter(JsonFormatter())
