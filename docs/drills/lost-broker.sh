#!/bin/bash
# The broker is killed. Commands are accepted meanwhile; when it is back, nothing is missing and nobody had to help.
. "$(dirname "$0")/lib.sh"

step "kill RabbitMQ"
before=$(db event_store -Atc "SELECT position FROM store.head()")
kill -9 "$(pid_of rabbitmq)"
sangam consumers || echo "exit code $?: the broker is away, as expected"

step "the supervisor starts it again; queues, consumers and the relay come back by themselves"
readers() { [ "$(sangam consumers --json | jq 'all(.[]; .expected == 0 or .problem == null)')" = true ]; }
until_true 90 "every queue has its reader" readers
until_true 60 "nobody is behind" sangam lag --max 0
sangam consumers || echo "exit code $?: what found no queue while they were declared again; sangam dead list"
sangam lag

step "nothing was lost on the way: positions are dense and the chain holds"
sangam events verify --from "$((before > 100 ? before - 100 : 1))"
