#!/bin/sh
# Policies for a job queue and what derives from it: `sh policies.sh [QUEUE [VHOST]]`, as whoever may run rabbitmqctl.
# A queue has one policy at a time, the matching one with the highest priority.
set -eu
queue=${1:-grid}
vhost=${2:-/}
ctl=${RABBITMQCTL:-rabbitmqctl}

# No more waiting jobs than a pool can ever run: beyond this, publishers that ask for confirms are told no.
$ctl set_policy --vhost "$vhost" --apply-to queues --priority 1 "$queue-bounded" "^$queue\$" \
    '{"max-length": 1000000, "overflow": "reject-publish"}'

# What nobody has looked at for four weeks.
$ctl set_policy --vhost "$vhost" --apply-to queues --priority 1 "$queue-dead" "^$queue\\.dead\$" \
    '{"message-ttl": 2419200000, "max-length-bytes": 1073741824}'
