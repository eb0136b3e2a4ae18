"""Let the tests find the module beside them where the distribution is not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
