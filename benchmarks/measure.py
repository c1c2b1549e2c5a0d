"""Time and peak memory of one function in a fresh process, and the table they are shown in."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data" / "benchmarks"


class PeakMemory:
    """Peak of the process's own memory while the block runs, in MB, sampled every 5 ms.

    Anonymous memory where Linux tells it (pages of memory-mapped files can be dropped at any
    time and are not counted), the whole resident set elsewhere.
    """

    def __enter__(self) -> "PeakMemory":
        self.start = self.peak = own_memory()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._began = time.perf_counter()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, own_memory())

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, own_memory())


def own_memory() -> float:
    """Memory of this process that no file stands behind, in MB; see ``PeakMemory``."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("RssAnon"):
                    return int(line.split()[1]) / 1024
    except OSError:
        pass
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def seconds(function, *, rounds: int = 3, warm_up: int = 1) -> float:
    """Median wall time of ``function()`` over ``rounds``, after ``warm_up`` calls."""
    for _ in range(warm_up):
        function()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return median(times)


def alone(function: str, *, threads: int = 1, **arguments: object) -> dict:
    """Call ``"module:name"`` in a fresh interpreter; return the dict it returns.

    Every measurement gets a process of its own, so that one's memory, threads and caches never
    reach the next.
    """
    module, name = function.split(":")
    code = (
        "import json, sys, importlib\n"
        f"result = importlib.import_module({module!r}).{name}(**json.loads(sys.argv[1]))\n"
        "print('RESULT', json.dumps(result))\n"
    )
    pinned = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)
    )
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, json.dumps(arguments)],
        cwd=ROOT,
        env=os.environ | pinned,
        capture_output=True,
        text=True,
    )
    lines = [line for line in process.stdout.splitlines() if line.startswith("RESULT ")]
    if process.returncode or not lines:
        raise RuntimeError(f"{function}({arguments}) failed:\n{process.stderr[-3000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def show(title: str, rows: list[dict]) -> None:
    """Print rows with the same keys as one Markdown table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    texts = [[_text(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(c), *(len(t[i]) for t in texts)) for i, c in enumerate(columns)]
    print(f"\n### {title}\n")
    print("| " + " | ".join(c.ljust(w) for c, w in zip(columns, widths, strict=True)) + " |")
    print("|" + "|".join("-" * (w + 2) for w in widths) + "|")
    for line in texts:
        print("| " + " | ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)) + " |")
    sys.stdout.flush()


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
