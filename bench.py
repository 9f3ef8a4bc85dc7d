"""Measure speed and memory: the plain formula, this package, and a GPT, side by side.

    python bench.py                                 # the whole table, a quarter of an hour on a laptop
    python bench.py --quick=True                    # under a minute
    python bench.py --only="train step" --json=bench.json
    python bench.py --only=none --plot=bench.png    # the step's time over T, K, V and B, no table
    python bench.py --help

tests/benchmark.py has the code, and says what is compared.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "tests"))  # where the plain formula is

from benchmark import BenchConfig, main

from nanobackpack import cli

if __name__ == "__main__":
    cli.run(main, BenchConfig)
