"""Workers of an encoding: threads of this process, or a Dask cluster.

A step is a plain function of small arguments that reads its cells from the disk and returns what
comes of them, or writes it to the disk in rows that depend on nothing but the cells. So it may run
anywhere that sees the disk, in any order, and again if a worker dies half-way.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


class ClusterError(ValueError):
    """The cluster cannot be used; the message says why."""


@dataclass(frozen=True)
class Workers:
    """An executor and how many tasks it does at once."""

    executor: Executor
    n_workers: int

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the results in order; only a few wait in memory."""
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append(self.executor.submit(function, item))
                if len(waiting) > self.n_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # after an error, what is still at work must not write into a removed folder
            for future in waiting:
                future.cancel()
            wait(waiting)


@dataclass(frozen=True)
class Steps:
    """Runs a step on some cells after others, and shows how far it is."""

    workers: Workers
    progress: bool

    def run(
        self, what: str, step: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[Result]:
        """Yield what the step returns for each item, in order."""
        disable = not self.progress
        with tqdm(total=len(items), desc=what, unit="block", disable=disable) as bar:
            for result in self.workers.map(step, items):
                yield result
                bar.update()

    def finish(self, what: str, step: Callable[[Item], Any], items: Sequence[Item]) -> None:
        """Run a step for what it writes."""
        for _ in self.run(what, step, items):
            pass


@contextmanager
def start_workers(n_threads: int, cluster: str | None = None) -> Iterator[Workers]:
    """Start threads, or connect to a cluster.

    Parameters
    ----------
    n_threads
        Threads, or processes of a local cluster.
    cluster
        Address of a Dask scheduler whose workers see the same files under the same paths;
        ``local``: one on this machine; None: threads of this process.

    Raises
    ------
    ClusterError
        If Dask is not installed, or nobody answers.
    """
    if cluster is None:
        with ThreadPoolExecutor(n_threads) as threads:
            yield Workers(threads, n_threads)
        return
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise ClusterError(
            f"cluster: {cluster}: Dask is not installed: pip install -r dataset/requirements.txt"
        ) from None
    if cluster == "local":
        with (
            LocalCluster(n_workers=n_threads, threads_per_worker=1, dashboard_address=None) as own,
            Client(own) as client,
        ):
            yield _workers_of(client)
        return
    try:
        client = Client(cluster, timeout="20s")
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"cluster: {cluster}: no Dask scheduler answers there ({error}); start one with "
            "dask scheduler, and workers in this folder with dask worker ADDRESS"
        ) from None
    with client:
        yield _workers_of(client)


def _workers_of(client) -> Workers:
    n_workers = sum(client.nthreads().values())
    # Not pure: a step is done for what it writes. Dask itself does again what a dead worker had.
    return Workers(client.get_executor(pure=False), max(n_workers, 1))
