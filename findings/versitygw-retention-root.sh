#!/bin/sh
# versitygw answers GetObjectRetention with another root element than S3's model has, so that a client that checks it fails.
#
# The model of the S3 API (the one that SDKs are generated from) names the answer's payload Retention. versitygw 1.8.0 sends
# <ObjectLockRetention>. boto3 does not look at the name and reads the lock; aws-sdk-s3 for Rust checks it and reports an error,
# with HTTP status 200. And a HEAD of a version that a delete marker hides shows no lock there, though the version has one.
# Needs Go and Python.
set -eu

VERSION=v1.8.0
BOTO3=1.44.8
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$work"' EXIT

GOBIN="$work" go install "github.com/versity/versitygw/cmd/versitygw@$VERSION"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "boto3==$BOTO3"
"$work/versitygw" --version
mkdir "$work/data" "$work/versions"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$work/versitygw" --access key --secret secret-key --port "127.0.0.1:$port" --quiet \
    posix --versioning-dir "$work/versions" "$work/data" > "$work/log" 2>&1 &
server=$!
sleep 2
"$work/venv/bin/python" - "$port" <<'PYTHON'
import datetime, sys
import boto3, botocore.parsers

bodies = []
parse = botocore.parsers.RestXMLParser.parse
def keep(self, response, shape):
    bodies.append(response["body"])
    return parse(self, response, shape)
botocore.parsers.RestXMLParser.parse = keep

s3 = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{sys.argv[1]}", aws_access_key_id="key",
                  aws_secret_access_key="secret-key", region_name="us-east-1")
s3.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
version = s3.put_object(Bucket="locked", Key="k", Body=b"hello", ObjectLockMode="GOVERNANCE",
                        ObjectLockRetainUntilDate=until)["VersionId"]
def look():
    retention = s3.get_object_retention(Bucket="locked", Key="k", VersionId=version)["Retention"]["Mode"]
    return retention, s3.head_object(Bucket="locked", Key="k", VersionId=version).get("ObjectLockMode")
before = look()
print("retention and HEAD of the version:", before)
s3.delete_object(Bucket="locked", Key="k")
after = look()
print("the same behind a delete marker:  ", after)
root = next(b for b in bodies if b"RetainUntilDate" in b)
print(root.decode())
assert before == ("GOVERNANCE", "GOVERNANCE"), before
assert after == ("GOVERNANCE", None), after
assert b"<ObjectLockRetention>" in root and b"<Retention>" not in root, root
print("as found: another root element, and no lock in the HEAD of a hidden version")
PYTHON
