#!/bin/bash
# A wrong version of a read model has written wrong rows. See how many, build it anew beside the live one, swap.
. "$(dirname "$0")/lib.sh"

step "as if a wrong version had run: every posting one paisa too much"
db ledger_transfer -c "UPDATE transaction SET amount_minor = amount_minor + 1"

step "how far does it go? Build a new generation with the code that runs now, and compare. Readers notice nothing"
! sangam rebuild ledger-transfer transactions --diff --reason "wrong amounts" || die "the wrong rows were not seen"

step "put it in place"
sangam rebuild ledger-transfer transactions --promote --reason "wrong amounts"

step "the wrong tables were kept: --rollback would put them back, caught up (had the new ones been the wrong ones)"
sangam rebuild ledger-transfer transactions --rollback --reason "drill"

step "build and put in place in one go, as one does when there is nothing to compare"
sangam rebuild ledger-transfer transactions --reason "wrong amounts"
