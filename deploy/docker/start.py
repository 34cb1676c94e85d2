"""The image's entry point: becomes the command it is given, with the settings of `SETTINGS_FILE` (lines `NAME=value`)
in its environment. What the environment names already wins. Kubernetes gives settings as environment and no file."""

import os
import sys
from pathlib import Path

if path := os.environ.get("SETTINGS_FILE"):
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition("=")
        os.environ.setdefault(name, value)
os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - the operator's own command
