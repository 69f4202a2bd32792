#!/bin/sh
# An agent of shell and nothing else: counts the prose under FOLDER and prints its most frequent words.
set -eu
folder=$1
list() { find "$folder" -name '*.md' -o -name '*.py' | sort; }

echo "[1/3] looking for prose and sources under $folder"
list | wc -l | sed 's/$/ files/'
echo "[2/3] counting lines, words and bytes"
list | xargs cat | wc | sed 's/^/totals:/'
echo "[3/3] the ten most frequent words of five letters and more"
list | xargs cat | tr -cs '[:alpha:]' '\n' | tr '[:upper:]' '[:lower:]' \
    | grep -E '^.{5,}$' | sort | uniq -c | sort -rn | sed -n '1,10p'
echo "done"
