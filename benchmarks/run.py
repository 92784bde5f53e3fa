"""`make bench`: run every benchmarks/bench_*.py, or the named ones; print ratios measured within one run and write them as JSON."""

import argparse
import importlib
import json
import os
import platform
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch
from timing import show

from multicrop.files import write_text

HERE = Path(__file__).parent


def machine() -> dict[str, object]:
    """The machine of the measurements."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
    }


def main() -> None:
    names = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*names, []], help=f"benchmarks to run: {', '.join(names)} (default: all)")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder of the JSON files (default: benchmarks/results)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.names or names:
        title, rows = importlib.import_module(f"bench_{name}").main()
        show(title, rows)
        facts = {"title": title, "date": date.today().isoformat(), "machine": machine(), "rows": [asdict(row) for row in rows]}
        write_text(options.output / f"{name}.json", json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
