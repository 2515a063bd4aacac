"""Uploads that an earlier version of this installation has left unfinished on a server.

That version derived sourceids with the server's address, this one does not (``resume_id``). Where there may be such uploads,
the client asks the server once for its unfinished uploads, and resumes them under their old sourceids.

Spec: BP1-RES-002.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import trio

from ..errors import BlockprotoError, ConnectionLost
from ..wire import UploadItem


class EarlierUploads:
    """The sourceids of unfinished uploads of one server, asked for once.

    Args:
        possible: whether an earlier version may have left uploads; without it nothing is asked.
        unfinished: asks the server for the uploads of this principal.
    """

    def __init__(self, possible: bool, unfinished: Callable[[], AsyncGenerator[UploadItem, None]]) -> None:
        self._known = not possible
        self._unfinished = unfinished
        self._sourceids: frozenset[bytes] = frozenset()
        self._asking = trio.Lock()

    async def learn(self) -> None:
        """Ask the server, if there may be some and it was not asked yet; a refusal counts as none.

        Raises:
            ConnectionLost: before it was known; the next call asks again.

        Cancellation: the next call asks again.
        """
        if self._is_known():
            return
        async with self._asking:
            if self._is_known():
                return
            try:
                async with aclosing(self._unfinished()) as items:
                    self._sourceids = frozenset([item.sourceid async for item in items])
            except ConnectionLost:
                raise
            except BlockprotoError:
                self._sourceids = frozenset()
            self._known = True

    def _is_known(self) -> bool:
        return self._known  # another task may have learned it meanwhile

    def __contains__(self, sourceid: bytes) -> bool:
        return sourceid in self._sourceids

    def __bool__(self) -> bool:
        return bool(self._sourceids)
