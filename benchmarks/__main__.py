"""Measure and print one table a part: ``python -m benchmarks [parts] [--json FILE] [--quick]``."""

import argparse
import json
import os
import platform
import sys
import time
from importlib import import_module, metadata
from pathlib import Path

PARTS = ("encode", "load", "train_step", "infer", "end_to_end")


def machine() -> dict:
    """What the figures depend on."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    names = ("torch", "numpy", "numba", "isal", "anndata")
    return {
        "cores": os.cpu_count(),
        "load before": load,
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in names},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()


def main(arguments: list[str] | None = None) -> int:
    """Run the parts asked for, all by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    parser.add_argument("--quick", action="store_true", help="tiny inputs: does it run?")
    words = parser.parse_args(arguments)
    if unknown := set(words.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}")
    found: dict = {"machine": machine()}
    about = found["machine"]
    print(f"{about['processor']}, {about['cores']} cores, load {about['load before']}")
    for part in words.parts or PARTS:
        began = time.perf_counter()
        found[part] = import_module(f"benchmarks.{part}").run(quick=words.quick)
        print(f"\n({part}: {time.perf_counter() - began:.0f} s)")
        if words.json:
            words.json.parent.mkdir(parents=True, exist_ok=True)
            words.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
