import hashlib
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import dataset.encode
from dataset.config import PreprocessConfig
from dataset.encode import encode
from dataset.reading.cells import CellFileError
from dataset.sources import synthetic_cells
from dataset.workers import ClusterError, start_workers

N_CELLS = 120
HEADER_BYTES = 128  # of a .npy file


@pytest.fixture
def config_of(tmp_path):
    cells = synthetic_cells(np.random.default_rng(5), n_cells=N_CELLS, n_genes=60)
    cells.write_h5ad(tmp_path / "cells.h5ad")

    def make(name, file="cells.h5ad", **settings):
        return PreprocessConfig(
            name=name,
            input=str(tmp_path / file),
            label_key="cell_type",
            quality_control={"min_genes": 5},
            split={"key": "donor", "val": ["donor_2"], "test": ["donor_3"]},
            tokenizer={"kind": "rank", "n_tokens": 30},
            data_dir=str(tmp_path / name),
            **settings,
        )

    return make


@pytest.fixture(scope="module")
def cluster():
    """Start a scheduler and two worker processes, which see the project from its own folder."""
    distributed = pytest.importorskip("distributed")
    root = str(Path(__file__).parents[2])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = root
    try:
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster:
            yield cluster
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def contents(folder):
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(Path(folder).rglob("*"))
        if file.is_file()
        and file.name not in ("config.yaml", "meta.json", "store.json", "checksums.json")
    }


@pytest.mark.parametrize("n_threads", [1, 3])
def test_results_come_in_order_and_few_wait(n_threads):
    started = []

    def slow_first(i):
        started.append(i)
        time.sleep(0.02 if i == 0 else 0)
        return i

    with start_workers(n_threads) as workers:
        results = workers.map(slow_first, range(30))
        assert next(results) == 0
        assert len(started) <= 2 * n_threads + 1
        assert list(results) == list(range(1, 30))


def test_after_an_error_nothing_is_at_work_any_more():
    done = []

    def fail_first(i):
        if i == 0:
            raise ValueError("no")
        time.sleep(0.05)
        done.append(i)

    with start_workers(2) as workers:
        with pytest.raises(ValueError, match="no"):
            list(workers.map(fail_first, range(100)))
        n_done = len(done)
        time.sleep(0.1)
        assert len(done) == n_done < 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of distributed's own
def test_a_cluster_writes_the_same_bytes(cluster, config_of, monkeypatch):
    monkeypatch.setattr(dataset.store.blocks, "SHARE_CELLS", 17)
    expected = contents(encode(config_of("threads"), progress=False))
    config = config_of("cluster", cluster=cluster.scheduler_address)
    assert contents(encode(config, progress=False)) == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_loses_and_doubles_nothing(cluster, config_of, monkeypatch):
    expected = contents(encode(config_of("threads"), progress=False))
    monkeypatch.setattr(dataset.store.blocks, "SHARE_CELLS", 1)
    config = config_of("cluster", cluster=cluster.scheduler_address)
    victim = next(iter(cluster.workers.values())).pid
    shares_done = []

    def kill_half_way():
        data = Path(config.data_dir)
        for _ in range(60_000):
            # A cell is a share here, and has 8 bytes in indptr.npy once its counts are there.
            n_bytes = sum(f.stat().st_size for f in data.glob("counts/.*.partial-*/indptr.npy"))
            n_done = (n_bytes - HEADER_BYTES) // 8 - 1
            if n_done >= 10:
                os.kill(victim, signal.SIGKILL)
                shares_done.append(n_done)
                return
            time.sleep(0.001)

    killer = threading.Thread(target=kill_half_way)
    killer.start()
    folder = encode(config, progress=False)
    killer.join()
    assert 10 <= shares_done[0] < N_CELLS
    assert contents(folder) == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_error_on_a_worker_is_told_as_one_here(cluster, config_of, tmp_path):
    cells = synthetic_cells(np.random.default_rng(5), n_cells=1200, n_genes=20)
    cells.X.data[cells.X.indptr[400]] = 1.5  # not among those that are looked at first
    cells.write_h5ad(tmp_path / "bad.h5ad")
    config = config_of("bad", "bad.h5ad", cluster=cluster.scheduler_address)
    with pytest.raises(CellFileError, match=r"bad\.h5ad.*cell_400"):
        encode(config, progress=False)
    assert [path for path in (tmp_path / "bad").rglob("*") if path.is_file()] == []


@pytest.mark.filterwarnings("ignore")
def test_no_scheduler_there_is_said(config_of, monkeypatch):
    distributed = pytest.importorskip("distributed")
    client = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda address, timeout: client(address, timeout=1))
    with pytest.raises(ClusterError, match="no Dask scheduler answers there"):
        encode(config_of("none", cluster="tcp://127.0.0.1:9"), progress=False)
