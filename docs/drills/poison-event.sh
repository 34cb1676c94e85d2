#!/bin/bash
# An event that a read model cannot take: it is parked with its stream, others go on; then the cause is mended and it is
# retried in order. Needs customers' events to come in (`make demo` leaves a live feed running).
. "$(dirname "$0")/lib.sh"
trap 'db ledger_transfer -c "ALTER TABLE transaction DROP CONSTRAINT IF EXISTS drill" 2>/dev/null' EXIT

step "break it: no posting fits the table any more"
db ledger_transfer -c "ALTER TABLE transaction ADD CONSTRAINT drill CHECK (false) NOT VALID"

step "wait for the alarm (sangam_parked_streams, or this)"
parked() { [ -n "$(sangam parked list --service ledger-transfer --json)" ]; }
until_true 60 "something is parked" parked
sangam parked list --service ledger-transfer --limit 5
read -r consumer position < <(sangam parked list --service ledger-transfer --json | jq -r 'select(.reason != "behind") | "\(.consumer) \(.position)"' | head -1)
sangam parked show ledger-transfer "$consumer" "$position"

step "nothing tries it again by itself, and the consumer is not behind: only these streams wait"
sangam parked retry ledger-transfer "$consumer" "$position" || echo "exit code $?: not mended yet, it stays parked"

step "mend the cause (usually: deploy), then retry everything, first events first"
db ledger_transfer -c "ALTER TABLE transaction DROP CONSTRAINT drill"
empty() { sangam parked retry ledger-transfer "$consumer" --all --wait 30 || ! parked; }
until_true 60 "nothing is parked any more" empty
sangam parked list --service ledger-transfer

step "proof: a rebuild from the log has the same rows"
sangam rebuild ledger-transfer all --diff --reason "proof after a poison event"
sangam rebuild ledger-transfer all --discard
sangam audit --limit 5
