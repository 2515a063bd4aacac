"""A queue of transfers that survives its program: what shall go up and down, in which order, and what became of it.

    async with TransferQueue.open() as queue:
        await queue.add_upload("film.mp4", "bp://host:7878", priority="bulk")
        await queue.run(until_empty=True)

    face     TransferQueue: what apps and the command call
    journal  the queue on disk, shared by any number of processes
    runner   begins what is next, a few at a time, and minds what other processes change meanwhile
    carrying one transfer, over a client

Rules:
    1. The journal says what is wanted and what became of it, never what is held: that the server says (an upload) or what
       lies beside its place (a download). A journal that is lost costs the list, not a byte.
    2. Any process may add and change; one at a time runs. It is told by the journal alone.
    3. What was running when its process was killed is waiting again for whoever runs next.
"""

from .entry import Direction, QueuedTransfer, TransferState
from .transfer_queue import TransferQueue

__all__ = ["Direction", "QueuedTransfer", "TransferQueue", "TransferState"]
