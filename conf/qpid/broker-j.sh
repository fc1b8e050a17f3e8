#!/bin/sh
# Apache Qpid Broker-J as carod wants it: `sh broker-j.sh JARS WORK`. WORK keeps queues, messages and users.
#
# broker-j.json beside this script is read at the first start only: to read it anew, remove WORK/config.json.
# PLAIN logins are allowed without TLS there, so keep CAROD_BROKER_ADDRESS to networks that you trust.
set -eu
jars=$1
work=$2
exec java ${JAVA_OPTS:--Xmx512m} -cp "$jars/*" -Dqpid.work_dir="$work" org.apache.qpid.server.Main \
    -icp "$(dirname "$0")/broker-j.json" \
    -prop "carod.user=${CAROD_BROKER_USER:-guest}" \
    -prop "carod.password=${CAROD_BROKER_PASSWORD:-guest}" \
    -prop "carod.address=${CAROD_BROKER_ADDRESS:-127.0.0.1}" \
    -prop "carod.port=${CAROD_BROKER_PORT:-5672}"
