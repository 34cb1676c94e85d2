#!/bin/bash
# A consumer stands still because a session holds its row: how to see who, and what to end.
. "$(dirname "$0")/lib.sh"

step "somebody opens a transaction in wealth's database and forgets it"
db wealth -c "BEGIN; SELECT position FROM consumed FOR UPDATE; SELECT pg_sleep(120)" >/dev/null 2>&1 &
until_true 10 "the lock is held" test -n "$(db wealth -Atc "SELECT 1" 2>/dev/null)"
sleep 1
# Any event will do, and acts of operators are events: a dry run over one position.
sangam replay search projections --dry-run --until 1 >/dev/null

step "the alarm: wealth is behind, and the others are not"
until_true 30 "wealth lags" fails sangam lag --service wealth --max 0
sangam lag --service wealth
sangam consumers --json >/dev/null && echo "its queue has a reader: it is not the broker"

step "who blocks it?"
db wealth -c "SELECT blocked.pid, left(blocked.query, 50) AS waits, blocker.pid AS blocker, left(blocker.query, 50) AS holds
  FROM pg_stat_activity blocked, unnest(pg_blocking_pids(blocked.pid)) AS b(pid) JOIN pg_stat_activity blocker ON blocker.pid = b.pid"

step "end that session; the consumer goes on by itself"
db wealth -Atc "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(120)%' AND pid <> pg_backend_pid()"
until_true 30 "wealth has caught up" sangam lag --service wealth --max 0
sangam lag --service wealth
