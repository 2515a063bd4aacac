"""A queue of transfers that survives its program: uploads and downloads, their order, and their outcomes.

    async with TransferQueue.open() as queue:
        await queue.add_upload("film.mp4", "bp://host:7878", priority="bulk")
        await queue.run(until_empty=True)

    transfer_queue  TransferQueue: what apps and the command call
    journal         the queue on disk, shared by any number of processes
    runner          begins what is next, a few at a time, and follows what other processes change
    run_transfer    runs one transfer over a client

Rules:
    1. The journal has what is wanted and the outcomes, never which bytes are held: the server knows that of an upload, the
       part file of a download. A lost journal costs the list, not a byte.
    2. Any process may add and change; one at a time runs the queue, and it learns of changes through the journal alone.
    3. A transfer that was running when its process was killed waits again for the next run.
"""

from .entry import Direction, QueuedTransfer, TransferState
from .transfer_queue import TransferQueue

__all__ = ["Direction", "QueuedTransfer", "TransferQueue", "TransferState"]
