"""Metrics: what a server does, in numbers for Prometheus, on a port of their own.

Labels are kinds, error codes, and the ids of principals with a quota as long as they are few; never a filename, a token or a
person's name. Gauges are computed when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial

import trio
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from ..errors import Code
from ..store import BlockDone, Decided, FileOutcome, Finish, StoredFile, StoreFiles, Upload
from ..wire import Ack, Error, Message, Open, RefusalItem, Stored
from . import metrics_page
from .observer import ConnectionLabel, Entered, Hook, Load, Observer

PRINCIPALS_MAX = 100
"""With more principals that have a quota, none is shown: each would be a time series of its own."""
_WORKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics(Observer):
    """An observer that counts.

    Attributes:
        registry: the metrics that ``shown`` serves.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._hook = _Counting(registry)
        self._came = Counter("blockproto_connections_came", "Connections.", ["kind"], registry=registry)
        self._uploads = Counter(
            "blockproto_uploads", "Streams that came to an upload with OPEN.", ["how"], registry=registry
        )
        self._blocks = Counter("blockproto_blocks_durable", "Blocks made durable.", registry=registry)
        self._bytes = Counter(
            "blockproto_block_bytes_durable", "Bytes of the blocks made durable.", registry=registry
        )
        self._files = Counter("blockproto_files_committed", "COMMITs that gave a file.", registry=registry)
        self._works = Histogram(
            "blockproto_batch_works", "Works of a batch.", buckets=_WORKS, registry=registry
        )
        self._seconds = Histogram(
            "blockproto_batch_seconds", "How long a batch took.", buckets=_SECONDS, registry=registry
        )

    def serving(self, load: Callable[[], Load]) -> None:
        """See Observer."""
        self.registry.register(_Loads(load, trio.lowlevel.current_trio_token()))

    def hooks(self) -> tuple[Hook, ...]:
        """See Observer."""
        return (self._hook,)

    def came(self, kind: str) -> None:
        """See Observer."""
        self._came.labels(kind).inc()

    def entered(self, upload: Upload, how: Entered) -> None:
        """See Observer."""
        self._uploads.labels(how).inc()

    def committed(self, decided: Sequence[Decided], elapsed_s: float) -> None:
        """See Observer."""
        self._works.observe(len(decided))
        self._seconds.observe(elapsed_s)
        for work, outcome in decided:
            if isinstance(work, BlockDone) and outcome is None:
                self._blocks.inc()
                self._bytes.inc(work.length)
            elif isinstance(work, Finish) and isinstance(outcome, StoredFile) and not _is_as_it_was(outcome):
                self._files.inc()
                self._blocks.inc(len(work.blocks))
                self._bytes.inc(sum(block.length for block in work.blocks))
            elif isinstance(work, StoreFiles) and isinstance(outcome, tuple):
                self._count_files(work, outcome)

    def _count_files(self, work: StoreFiles, outcomes: tuple[FileOutcome, ...]) -> None:
        stored = zip(work.files, outcomes, strict=True)
        new = [file for file, one in stored if isinstance(one, StoredFile) and not _is_as_it_was(one)]
        self._files.inc(len(new))
        self._blocks.inc(sum(1 for file in new if file.length))
        self._bytes.inc(sum(file.length for file in new))


def _is_as_it_was(stored: StoredFile) -> bool:
    """Whether nothing was stored: the file was there already, or another one was left."""
    return stored.there or stored.left


class _Counting(Hook):
    """Counts bytes and messages of all connections."""

    counts_bytes = True

    def __init__(self, registry: CollectorRegistry) -> None:
        self._received = Counter("blockproto_received_bytes", "Bytes from the network.", registry=registry)
        self._sent = Counter("blockproto_sent_bytes", "Bytes to the network.", registry=registry)
        self._downloads = Counter("blockproto_downloads", "Files that began to be sent.", registry=registry)
        self._acks = Counter("blockproto_acks", "ACK frames said.", registry=registry)
        self._refusals = Counter(
            "blockproto_refusals", "Streams and files that were refused.", ["code"], registry=registry
        )

    def said(
        self, connection_label: ConnectionLabel | None, stream: int, message: Message, payload_length: int
    ) -> None:
        """See Hook."""
        if isinstance(message, Ack):
            self._acks.inc()
        elif isinstance(message, Error):
            self._refusals.labels(Code(message.code).name).inc()
        elif isinstance(message, Stored):
            for item in message.outcomes:
                if isinstance(item, RefusalItem):
                    self._refusals.labels(Code(item.code).name).inc()
        elif isinstance(message, Open):
            self._downloads.inc()

    def received(self, length: int) -> None:
        """See Hook."""
        if length:
            self._received.inc(length)

    def sent(self, length: int) -> None:
        """See Hook."""
        self._sent.inc(length)


class _Loads(Collector):
    """The gauges, read from the server when they are asked for; none once it has ended."""

    def __init__(self, load: Callable[[], Load], token: trio.lowlevel.TrioToken) -> None:
        self._load = load
        self._token = token

    def describe(self) -> list[Metric]:
        """See Collector. Empty, so that registering asks the server nothing."""
        return []

    def collect(self) -> Iterator[Metric]:
        """See Collector; called in a worker thread."""
        try:
            load = trio.from_thread.run_sync(self._load, trio_token=self._token)
        except trio.RunFinishedError:
            return
        connections = GaugeMetricFamily("blockproto_connections", "Connections now.", labels=["kind"])
        for kind, count in load.connections.items():
            connections.add_metric([kind], count)
        yield connections
        yield GaugeMetricFamily("blockproto_open_uploads", "Uploads that are open.", value=load.uploads)
        yield GaugeMetricFamily("blockproto_queued_works", "What waits to be made durable.", value=load.works)
        yield GaugeMetricFamily(
            "blockproto_disk_slow",
            "Whether store calls leave the main thread: the disk is slow.",
            value=load.disk_slow,
        )
        if 0 < len(load.used) <= PRINCIPALS_MAX:
            used = GaugeMetricFamily(
                "blockproto_principal_used_bytes", "Bytes of a principal with a quota.", labels=["principal"]
            )
            for principal, length in load.used.items():
                used.add_metric([principal.hex()], length)
            yield used


def shown(metrics: Metrics, host: str, port: int) -> AbstractContextManager[int]:
    """Serve the metrics over HTTP on ``host`` and ``port`` (0 picks a free one) while inside; gives the port.

    Raises:
        NotPermitted: the address cannot be used.
    """
    return metrics_page.shown(partial(generate_latest, metrics.registry), CONTENT_TYPE_LATEST, host, port)
