# What the drills share. Run them from the root of the checkout, on a stack that you may disturb: `make up` or `make demo`.
set -euo pipefail
RUN=${RUN:-.run}
export SANGAM_OPERATOR=${SANGAM_OPERATOR:-drill}
. "$RUN/local.env"

sangam() { "${SANGAM:-.venv/bin/sangam}" "$@" --env "$RUN/local.env"; }
db() { psql -X -q -v ON_ERROR_STOP=1 "${EVENT_STORE_URL/event_store/$1}" "${@:2}"; } # db wealth -c 'SELECT …'
pid_of() { jq ".processes[\"$1\"].pid" "$RUN/state.json"; }
step() { printf '\n== %s\n' "$*"; }
die() { printf 'drill failed: %s\n' "$*" >&2; exit 1; }
for tool in jq psql; do command -v "$tool" >/dev/null || die "$tool is needed and not installed"; done

# until_true SECONDS WHAT COMMAND…: again and again until it succeeds.
until_true() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || die "not in time: $what"
    sleep 0.5
  done
}
fails() { ! "$@"; }
