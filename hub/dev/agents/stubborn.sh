#!/bin/sh
# An agent that will not go: it ignores SIGTERM, and so does the child that it forks.
trap 'echo "SIGTERM? No."' TERM
(
    trap '' TERM
    while :; do sleep 1; done
) &
echo "begin: I ignore SIGTERM, and so does my child"
while :; do
    sleep 0.2
done
