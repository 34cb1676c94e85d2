#!/bin/bash
# Somebody with the administrator's password changes an event. The chain names the first position that is not what it was.
. "$(dirname "$0")/lib.sh"
mend() { db event_store -c "UPDATE store.events e SET data = o.data FROM public.drill_original o WHERE e.id = o.id; DROP TABLE public.drill_original" 2>/dev/null || true; }

step "the log is what was written"
sangam events verify
position=$(db event_store -Atc "SELECT position FROM store.head()")

step "tamper with the event at position $position"
trap mend EXIT
db event_store -c "CREATE TABLE public.drill_original AS SELECT e.id, e.data FROM store.events e JOIN store.log l ON l.id = e.id WHERE l.position = $position" \
  -c "UPDATE store.events SET data = data || ' '::bytea WHERE id = (SELECT id FROM public.drill_original)"

step "verify finds it"
found=$(sangam events verify --json) && die "verify did not notice"
jq . <<<"$found"
[ "$(jq '.findings[0].position' <<<"$found")" = "$position" ] || die "the wrong position"

step "what to do: keep the evidence, find who (audit, pg_stat_activity, server logs), restore from the backup beside it and
   compare the bytes of that position; every read model can be rebuilt from the restored log"
sangam events show "$position" | sed -n 1,5p
mend
trap - EXIT
sangam events verify
