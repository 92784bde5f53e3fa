"""A pool of Ray actors that encode shards: it grows while there is work, replaces actors that die, and retries shards that fail."""

import heapq
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from multicrop.features.fill_line import FillLine, Shards
from multicrop.features.stops import loop

log = logging.getLogger(__name__)
WAIT_SECONDS = 0.5  # between two looks at signals and at the progress line
IDLE_SECONDS = 60.0  # without any actor, before a warning
LONGEST_SECONDS = 30.0  # of a pause after failures
FAILURES = 10  # in a row, and two per actor: then the cluster is at fault, not a shard


class BadShardError(RuntimeError):
    """Raised for shards that failed on every try."""


@dataclass(frozen=True)
class Call:
    """A call of an actor that has not returned: one shard, or None where the actor loads the model."""

    actor: Any
    shard: int | None


class ShardPool:
    """Hands shards to actors.

    Args:
        start: Starts an actor, which has the methods ``load()`` and ``encode(shard)``.
        actors: Fewest and most actors.
        capacity: How many actors fit into the cluster at the start.
        tries: Tries per shard.
        skip: Whether the other shards are encoded before a bad one ends the run.
    """

    def __init__(self, start: Callable[[], Any], actors: tuple[int, int], *, capacity: int, tries: int, skip: bool) -> None:
        self.start, (self.fewest, self.most), self.capacity, self.tries, self.skip = start, actors, capacity, tries, skip
        self.calls: dict[Any, Call] = {}
        self.ready: dict[Any, str] = {}  # actors that have loaded the model, and their nodes
        self.idle: list[Any] = []
        self.failed: Counter[int] = Counter()
        self.bad: dict[int, str] = {}
        self.in_a_row, self.grow_at = 0, 0.0

    def run(self, shards: Sequence[int], folder: Shards, line: FillLine) -> int:
        """Encode shards, and end the actors.

        Args:
            shards: The shards to encode.
            folder: The bank, or the folder of results.
            line: The progress line.

        Returns:
            The number of images that the actors encoded. Shards that another process had claimed may be missing.

        Raises:
            BadShardError: If a shard failed on every try.
        """
        self.folder, self.line, self.queue, before = folder, line, [(0.0, shard) for shard in shards], line.images
        self.alone_since = time.monotonic()
        try:
            with loop() as end_batch:
                while self.queue or any(call.shard is not None for call in self.calls.values()):
                    self._grow()
                    self._assign()
                    self._wait()
                    line.tell()
                    end_batch()
        finally:
            self._end()
        if self.bad:
            raise BadShardError(self._bad_shards())
        return line.images - before

    def _grow(self) -> None:
        """Start actors while there is work for more: at first as many as fit, then as many as work."""
        working = sum(call.shard is not None for call in self.calls.values())
        loading = len(self.calls) - working
        wanted = min(self.most, len(self.queue) + working)
        at_once = max(self.fewest, len(self.ready) or self.capacity)
        while len(self.ready) + loading < wanted and loading < at_once and time.monotonic() >= self.grow_at:
            actor = self.start()
            self.calls[actor.load.remote()] = Call(actor, None)
            loading += 1

    def _assign(self) -> None:
        """Give idle actors the shards whose pause is over."""
        while self.idle and self.queue and self.queue[0][0] <= time.monotonic():
            actor, (_, shard) = self.idle.pop(), heapq.heappop(self.queue)
            self.calls[actor.encode.remote(shard)] = Call(actor, shard)

    def _wait(self) -> None:
        """Take the results of calls that have returned."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        if not self.calls:
            time.sleep(WAIT_SECONDS)
            return
        returned, _ = ray.wait(list(self.calls), timeout=WAIT_SECONDS)
        for reference in returned:
            call = self.calls.pop(reference)
            try:
                self._take(call, ray.get(reference))
            except RayTaskError as error:
                self._raised(call, error)
            except RayError as error:  # the actor, its process or its node ended
                self._lost(call, error)
        if self.ready:
            self.alone_since = time.monotonic()
        elif time.monotonic() - self.alone_since > IDLE_SECONDS:
            log.warning(
                "no actor is ready after %.0f s: the model takes long to load, or no node has room (engine.num_cpus, engine.num_gpus)",
                IDLE_SECONDS,
            )
            self.alone_since = time.monotonic()

    def _take(self, call: Call, result: Any) -> None:
        """Note the result of a call: the node of an actor that has loaded the model, or the number of images of an encoded shard."""
        self.idle.append(call.actor)
        if call.shard is None:
            self.ready[call.actor] = result
            self.line.started = self.line.started or time.monotonic()
        else:
            self.in_a_row = 0
            self.line.images += result
            self.line.done += bool(result)
        self.line.nodes = Counter(self.ready.values())

    def _raised(self, call: Call, error: Any) -> None:
        """Try the shard of a call that raised an error again; an error while the model is loaded would be raised by every actor."""
        cause = error.cause if isinstance(error.cause, Exception) else error
        if call.shard is None:
            raise cause from error
        self.idle.append(call.actor)
        self._failed(call.shard, f"{type(cause).__name__}: {cause}")

    def _lost(self, call: Call, error: Exception) -> None:
        """Replace an actor that was lost, and try its shard again.

        Idle actors of the same node are ended too: if the node has failed, each of them would cost the shard a try.
        """
        import ray

        node = self.ready.get(call.actor, "a node")
        for actor in [call.actor, *(idle for idle in self.idle if self.ready[idle] == node)]:
            ray.kill(actor)
            self.ready.pop(actor, None)
        self.idle = [idle for idle in self.idle if idle in self.ready]
        self.line.nodes = Counter(self.ready.values())
        self.grow_at = time.monotonic() + self._pause()
        if getattr(error, "actor_init_failed", False):
            raise RuntimeError(f"an actor cannot be started: {error}") from error
        reason = f"the process that encoded it on {node} ended ({str(error).splitlines()[0]})"
        if call.shard is None:
            self._count_failure(reason)
        else:
            self._failed(call.shard, reason)

    def _failed(self, shard: int, reason: str) -> None:
        """Try a shard again later, or give it up."""
        self.failed[shard] += 1
        self._count_failure(reason)
        if self.failed[shard] < self.tries:
            heapq.heappush(self.queue, (time.monotonic() + self._pause(), shard))
            return
        self.bad[shard] = reason
        log.warning("shard %d failed %d times: %s", shard, self.tries, reason)
        if not self.skip:
            raise BadShardError(self._bad_shards())

    def _count_failure(self, reason: str) -> None:
        self.in_a_row, self.line.failures = self.in_a_row + 1, self.line.failures + 1
        if self.in_a_row > FAILURES + 2 * max(self.capacity, self.fewest):
            raise RuntimeError(
                f"{self.in_a_row} tries in a row failed on this cluster, the last one: {reason}. Check it, then run the same command again"
            )

    def _pause(self) -> float:
        """Seconds to wait after failures; each in a row doubles them."""
        return min(LONGEST_SECONDS, 0.25 * 2**self.in_a_row)

    def _end(self) -> None:
        """End all actors; a process that dies releases its claims on shards."""
        import ray

        for actor in {id(actor): actor for actor in [*self.ready, *(call.actor for call in self.calls.values())]}.values():
            ray.kill(actor)
        self.calls, self.ready, self.idle = {}, {}, []

    def _bad_shards(self) -> str:
        """Which shards are bad, and what to do."""
        first = {shard: f"shard {shard} (images {self.folder.rows(shard).start} to {self.folder.rows(shard)[-1]})" for shard in self.bad}
        shown = "; ".join(f"{first[shard]}: {reason}" for shard, reason in sorted(self.bad.items())[:10])
        more = f"; and {len(self.bad) - 10} more" if len(self.bad) > 10 else ""
        return (
            f"{len(self.bad)} of {self.folder.count} shards of {self.folder.path} failed {self.tries} times each: {shown}{more}. Finished "
            "shards are kept, and the same command encodes the rest; engine.on_bad_shard=skip encodes the other shards first"
        )
