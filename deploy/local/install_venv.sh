#!/bin/bash
# Installs Python's venv module on Debian, which splits it off from python3. Runs before there is any Python of ours.
set -euo pipefail

privileged=()
if [ "$(id -u)" -ne 0 ]; then
  if ! sudo -n true 2>/dev/null; then
    echo "Python's venv module is missing: run \`sudo apt-get install python3 python3-venv\`" >&2
    exit 1
  fi
  privileged=(sudo -n)
fi
if ! command -v apt-get >/dev/null; then
  echo "Python 3.11 or newer with its venv module is needed" >&2
  exit 1
fi
echo "installing python3-venv (apt-get)"
"${privileged[@]}" apt-get -qq -o DPkg::Lock::Timeout=180 update
"${privileged[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get -qq -o DPkg::Lock::Timeout=180 install -y --no-install-recommends python3 python3-venv >/dev/null
