"""A connection whose errors name the server's reason for ending the session."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.errors import Diagnostic
from psycopg.rows import TupleRow

from pulso_etl.sync.postgres.server_errors import with_code

OPERATOR = "57"
"""The class of the codes with which a server ends sessions that did nothing wrong."""


class Connection(psycopg.Connection[TupleRow]):
    """Connects like psycopg's own. If the server ends the session, the error has the code and the text that the server sent.

    The server sends its reason when it ends a session. If that reason arrives between two statements, libpq takes it for a notice,
    and the next statement fails with an error that has no code. After a crash the server sends its reason as a warning.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reasons = reasons = list[psycopg.Error]()

        # The handler does not hold the connection, so that Python closes a forgotten connection at once. It reads the notice at
        # once, because libpq keeps a notice only during the call.
        def hear(notice: Diagnostic) -> None:
            if _ends_the_session(notice) and (reason := with_code(notice.sqlstate, notice.message_primary or str(notice.sqlstate))):
                reasons.append(reason)

        self.add_notice_handler(hear)

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        """Every statement runs in here. Raises psycopg.Error."""
        try:
            return super().wait(*args, **kwargs)
        except psycopg.OperationalError as error:
            if error.sqlstate is None and self._reasons:
                raise self._reasons[-1] from error
            raise


def _ends_the_session(notice: Diagnostic) -> bool:
    return notice.severity_nonlocalized in ("FATAL", "PANIC") or (notice.sqlstate or "").startswith(OPERATOR)
