"""Opens a partner, and opens it again when it was lost."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from lacy_stream.cascade.partner import Call, Partner, PartnerError, PromptError, answer_of

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
_log = logging.getLogger(__name__)


class PartnerWatch:
    """The partner of a server. While it is not there, a thread tries to reach it, with growing pauses.

    Args:
        open: opens the partner; raises PartnerError if it is not there.
        first_pause_s: the first pause between attempts; each is twice as long, up to ``LONGEST_PAUSE_S``.
    """

    def __init__(self, open: Callable[[], Partner], *, first_pause_s: float = FIRST_PAUSE_S) -> None:
        self._open, self._first_pause_s = open, first_pause_s
        self._changed = threading.Condition()
        self._ends = False
        self._opened: Partner | None = None
        self._lost_at = time.monotonic()
        self.partner: Partner | None = None
        """The partner if it is there."""
        self.reason = ""
        """Why it is not there."""
        self._try()
        self._thread = threading.Thread(target=self._run, name="partner-watch", daemon=True)
        self._thread.start()

    def lose(self, error: PartnerError) -> None:
        """Take note that the partner does not answer."""
        with self._changed:
            if self.partner is not None:
                _log.warning("the partner is lost: %s", error)
                self._lost_at = time.monotonic()
            self.partner, self.reason = None, str(error)
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()

    def _run(self) -> None:
        pause_s = self._first_pause_s
        while True:
            with self._changed:
                while self.partner is not None and not self._ends:
                    self._changed.wait()
                    pause_s = self._first_pause_s
                if self._changed.wait_for(lambda: self._ends, pause_s):
                    return
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            self._try()

    def _try(self) -> None:
        """Open the partner, if that was not done, and let it answer once."""
        try:
            partner = self._opened = self._opened or self._open()
            _probe(partner)
        except PartnerError as error:
            if not self.reason:
                _log.warning("the partner is not there: %s", error)
            self.reason = str(error)
            return
        with self._changed:
            if self.reason:
                _log.warning("the partner is there, after %.0f s", time.monotonic() - self._lost_at)
            self.partner, self.reason = partner, ""


def _probe(partner: Partner) -> None:
    """Ask for one token.

    Raises:
        PartnerError: the partner does not answer.
    """
    session = partner.session()
    try:
        next(answer_of(partner, Call(session, "The")), None)
    except PromptError:  # that is an answer, too
        pass
    finally:
        session.close()
