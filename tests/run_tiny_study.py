"""Run the tests' own small study in a process of its own: FOLDER JOBS."""

import sys
from pathlib import Path

import joblib

sys.path.insert(0, str(Path(__file__).parent))

from test_studies import tiny_study

from losslandscape.lab import studies

studies.STUDIES["tiny"] = tiny_study()

if __name__ == "__main__":
    # Threads see the study registered above; new processes would not.
    with joblib.parallel_config(backend="threading"):
        studies.run_study(studies.STUDIES["tiny"], Path(sys.argv[1]), jobs=int(sys.argv[2]))
