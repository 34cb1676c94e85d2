#!/bin/bash
# One consumer gets last Tuesday's events again: customers' feed has lost rows of that day. Nobody else sees anything.
. "$(dirname "$0")/lib.sh"
since=${SINCE:-$(date -u -d 'last tuesday' +%F)}
until=${UNTIL:-$(date -u -d "$since + 1 day" +%F)}

step "rows of that day vanish from sync_gateway's feed"
db sync_gateway -Atc "WITH gone AS (DELETE FROM feed WHERE recorded_at >= '${LOST_SINCE:-$since}' RETURNING 1) SELECT count(*) || ' rows lost' FROM gone"

chosen=(sync-gateway projections --projection feed --since "$since" --until "$until" --reason "rows lost, ticket 4711")
step "dry run: how many, how long, which rows, which outside effects"
sangam replay "${chosen[@]}" --dry-run

step "replay, gently"
sangam replay "${chosen[@]}" --rate "${RATE:-2000}"

step "again changes nothing: the dry run says so"
sangam replay "${chosen[@]}" --dry-run
sangam operations list --service sync-gateway --limit 3
