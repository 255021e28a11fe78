"""Run the tests' own small study in a process of its own: FOLDER JOBS."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from test_studies import tiny_study

from losslandscape.lab import studies

if __name__ == "__main__":
    studies.run_study(tiny_study(), Path(sys.argv[1]), jobs=int(sys.argv[2]))
