"""The results of ``factory experiment`` as a Markdown table: python scripts/bench/experiment_table.py results.json"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from factory.reports.experiment import markdown_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="what --out wrote")
    print(markdown_table(json.loads(parser.parse_args().results.read_text(encoding="utf-8"))), end="")


if __name__ == "__main__":
    main()
