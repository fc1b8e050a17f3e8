#!/bin/sh
# Hello Grid with amqp-tools, zip and unzip: hello_grid.sh [URL [QUEUE [COMMAND]]]
#
# amqp-tools sets no message id (so a header does) and shows bodies only, no headers. So the job is a script that comes
# with its message, runs the command and notes its exit code in a file; files it needs would go into the same zip.
set -eu
url=${1:-${CAROD_BROKER:-amqp://guest:guest@localhost:5672}}
url=${url%/} # to amqp-tools, that would be a virtual host without a name
queue=${2:-grid}
command=${3:-/bin/echo Hello Grid}
patience=${PATIENCE:-600} # seconds: nodes report every five minutes, and amqp-publish does not tell of a missing queue

fail() {
    echo "$1" >&2
    exit 1
}

work=$(mktemp -d)
replies=hello-grid-$(basename "$work")
trap 'rm -rf "$work"; amqp-delete-queue --url "$url" --queue "$replies" >/dev/null 2>&1 || true' EXIT
trap 'exit 130' INT TERM
cd "$work"

cat >job.sh <<EOF
#!/bin/sh
( $command )
echo \$? >exit_code
EOF
zip -q job.zip job.sh

amqp-declare-queue --url "$url" --queue "$replies" >/dev/null || fail "no broker at ${url##*@}"
amqp-publish --url "$url" --routing-key "$queue" --reply-to "$replies" \
    --header "MessageId: $replies" --header 'Cmd: job.sh' <job.zip

while true; do
    status=0
    timeout "$patience" amqp-consume --url "$url" --queue "$replies" --count 1 cat >reply || status=$?
    [ $status != 124 ] || fail "no reply within $patience s: is a node running, on queue '$queue'?"
    [ $status = 0 ] || fail 'connection lost'
    case $(head -c 6 reply) in
    '') echo 'status message' ;; # that it was accepted, runs, is suspended: which of them, the headers say
    ERROR:) fail "$(cat reply)" ;;
    *) break ;;
    esac
done
echo 'result:' && unzip -Z1 reply
unzip -p reply _condor_stdout
unzip -p reply _condor_stderr >&2
code=$(unzip -p reply exit_code 2>/dev/null) || fail 'the job ended before its time'
exit "$code"
