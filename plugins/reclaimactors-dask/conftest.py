"""Run where dask is: .ci/run tests this in an environment of its own (conformance.txt)."""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
collect_ignore = [] if find_spec("distributed") else ["test_reclaimactors_dask.py"]
