"""`make bench`: run the short benchmarks or the named ones (BENCH="bank.embedded scale"); print and keep ratios measured within one run."""

import argparse
import importlib
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path

import timing
import torch
from timing import Row, show

from multicrop.files import write_text

HERE = Path(__file__).parent


def machine() -> dict[str, object]:
    """The machine of the measurements."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": f"{platform.machine()}, {torch.cpu.get_capabilities().get('cpu_name', '')}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": timing.clock,
        "gpu": gpu,
        "torch": torch.__version__,
    }


def chosen(words: Sequence[str]) -> dict[str, list[str]]:
    """The parts of each benchmark to run, from words such as `bank` and `bank.embedded`.

    Where there are none: all parts but those that a benchmark names in LONG: just under ten minutes on two idle cores, as the sum of
    their measured times.

    Raises:
        ValueError: If a word names no benchmark or part.
    """
    found: dict[str, list[str]] = {}
    for word in words or sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py")):
        name, _, part = word.partition(".")
        if not (HERE / f"bench_{name}.py").is_file():
            raise ValueError(f"{word} names no benchmark; there are {', '.join(chosen([]))}")
        bench = importlib.import_module(f"bench_{name}")
        parts = list(bench.PARTS)
        if part and part not in parts:
            raise ValueError(f"{name} has no part {part}; there are {', '.join(f'{name}.{part}' for part in parts)}")
        short = parts if words else [part for part in parts if part not in getattr(bench, "LONG", ())]
        found.setdefault(name, []).extend([part] if part else short)
    return {name: parts for name, parts in found.items() if parts}


def keep(path: Path, part: str, title: str, rows: list[Row], seconds: float) -> None:
    """Write the rows of one part, and the seconds that it took, into the file of its benchmark, in place of those of an earlier run."""
    parts = json.loads(path.read_text()).get("parts", {}) if path.is_file() else {}
    about = {"title": title, "date": date.today().isoformat(), "seconds": round(seconds), "machine": machine()}
    parts[part] = about | {"rows": [asdict(row) for row in rows]}
    write_text(path, json.dumps({"parts": parts}, indent=1))


def main() -> None:
    """Run the parts one after the other; one that fails is named at the end, with exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="benchmarks or parts, such as bank or bank.embedded (default: all that are short)")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder of the JSON files (default: benchmarks/results)")
    parser.add_argument(
        "--clock",
        choices=timing.CLOCKS,
        default="wall",
        help="processor: time of the processor, which other jobs disturb least, for parts that start no process; use OMP_NUM_THREADS=1",
    )
    options = parser.parse_args()
    timing.clock = options.clock
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        work = chosen(options.names)
    except ValueError as error:
        parser.error(str(error))
    failed, began = [], time.perf_counter()
    for name, parts in work.items():
        bench = importlib.import_module(f"bench_{name}")
        for part in parts:
            started = time.perf_counter()
            title, rows = f"{name}.{part}: {bench.TITLE}", []
            try:
                rows = bench.PARTS[part]()
            except Exception:  # noqa: BLE001 the other parts are measured all the same
                traceback.print_exc()
                failed.append(f"{name}.{part}")
            seconds = time.perf_counter() - started
            if rows:
                show(title, rows)
                keep(options.output / f"{name}.json", part, title, rows, seconds)
            print(f"{name}.{part}: {seconds:.0f} s{'' if rows else ', nothing measured'}", flush=True)
    print(f"{time.perf_counter() - began:.0f} s in all", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
