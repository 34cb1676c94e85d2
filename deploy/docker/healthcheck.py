"""Docker's health check: 0 when this container's process says at `/health/ready` (or another path) that it works."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "local"))

from health import why_not_200

path = sys.argv[1] if len(sys.argv) > 1 else "/health/ready"
sys.exit(why_not_200(f"http://127.0.0.1:{os.environ.get('HTTP_PORT', '8080')}{path}"))
