"""Answers that are due at a time of their own: wakes the server when the next one is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from apps.server.service import ApplicationService


class DueAnswers:
    """One timer for all answers that wait. ``answer`` is called with each connection that has one."""

    def __init__(self, may_answer: Callable[[], bool], answer: Callable[[str], None]) -> None:
        self._may_answer = may_answer
        self._answer = answer
        self._timer: asyncio.TimerHandle | None = None
        self._service: ApplicationService | None = None

    def arm(self, service: ApplicationService) -> None:
        """Wait for the next answer of this service; call it whenever that may have changed."""
        due_s = service.next_due_s()
        if self._timer is not None:
            if service is self._service and due_s is not None and self._timer.when() <= due_s:
                return  # it will look again then
            self._timer.cancel()
            self._timer = None
        self._service = service
        if due_s is not None:
            self._timer = asyncio.get_running_loop().call_at(due_s, self._due)

    def _due(self) -> None:
        self._timer = None
        service = self._service
        # a server that is frozen, or may not serve, is armed again when it goes on
        if service is None or not self._may_answer():
            return
        for key in service.due():
            self._answer(key)
        self.arm(service)
