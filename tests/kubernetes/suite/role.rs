//! A repository whose store lets the coordinator in by a role: the cluster vouches for it, and no key of the store lies in a Secret.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, OnceLock};

use milkrun_tests::seaweed::Seaweed;
use serde_json::json;

use crate::faults::{restore, wait_for_success};
use crate::installed::{back_up, make_bucket, repository, set_values, start_application, with_milkrun};
use crate::playground::Playground;

/// Whom the tokens are for.
const AUDIENCE: &str = "milkrun-store";

/// The public keys with which the cluster signs its tokens, for everybody to read. The store asks for them when it sees the first token.
struct PublicKeys {
    port: u16,
    keys: Arc<OnceLock<String>>,
}

impl PublicKeys {
    fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let keys = Arc::new(OnceLock::<String>::new());
        let known = keys.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let lines = BufReader::new(&stream).lines();
                lines.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
                let body = known.get().cloned().unwrap_or_default();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = stream.write_all((head + &body).as_bytes());
            }
        });
        Self { port, keys }
    }
}

/// A store that gives two roles for a minute at a time: `backup` to the coordinator, `else` to somebody else.
fn rules(keys: &PublicKeys) -> String {
    let role = |name: &str, account: &str| {
        json!({
            "roleName": name,
            "roleArn": format!("arn:aws:iam::role/{name}"),
            "attachedPolicies": ["all"],
            "trustPolicy": {"Version": "2012-10-17", "Statement": [{
                "Effect": "Allow",
                "Principal": {"Federated": "cluster"},
                "Action": ["sts:AssumeRoleWithWebIdentity"],
                "Condition": {"StringEquals": {"oidc:sub": format!("system:serviceaccount:{account}")}},
            }]},
        })
    };
    let provider = json!({
        "issuer": "https://kubernetes.default.svc",
        "clientId": AUDIENCE,
        "jwksUri": format!("http://127.0.0.1:{}/", keys.port),
    });
    let all = json!({"Effect": "Allow", "Action": ["s3:*"], "Resource": ["*"]});
    json!({
        "sts": {"tokenDuration": "1m", "maxSessionLength": "1h", "issuer": "store",
            "signingKey": "bm8gc2VjcmV0IGF0IGFsbDogb25seSBmb3IgYSB0ZXN0"},
        "providers": [{"name": "cluster", "type": "oidc", "enabled": true, "config": provider}],
        "policy": {"defaultEffect": "Deny", "storeType": "memory"},
        "policies": [{"name": "all", "document": {"Version": "2012-10-17", "Statement": [all]}}],
        "roles": [role("backup", "milkrun:milkrun-coordinator"), role("else", "shop:default")],
    })
    .to_string()
}

fn with_role(cluster: &Playground, store: &Seaweed, role: &str, audience: &str) {
    let identity = format!(", create: true, identity: {{roleARN: \"arn:aws:iam::role/{role}\", audience: {audience}}}");
    cluster.apply(&repository("prod", store, &identity));
}

#[test]
fn a_repository_is_opened_by_a_role() {
    let keys = PublicKeys::serve();
    let test = "a_repository_is_opened_by_a_role";
    let Some(store) = Seaweed::start_with_roles(test, &rules(&keys)) else { return };
    let Some(cluster) = with_milkrun(test, 1, &store) else { return };
    make_bucket(&store);
    keys.keys.set(cluster.kubectl("get --raw /openid/v1/jwks")).unwrap();
    // The password alone: it never leaves the cluster, and opens nothing at the store.
    cluster.kubectl("-n milkrun create secret generic prod --from-literal=password=horse");

    // What is wrong is said.
    let message = "-n milkrun get repository prod -o jsonpath={.status.message}";
    with_role(&cluster, &store, "backup", AUDIENCE);
    cluster.wait_for("its status", message, |said| said.contains("no token for spec.identity.audience"));
    set_values(&cluster, &format!("coordinator.storeAudiences={{{AUDIENCE}}}"));
    with_role(&cluster, &store, "else", AUDIENCE);
    cluster.wait_for("its status", message, |said| said.contains("take the role arn:aws:iam::role/else: HTTP 403"));
    with_role(&cluster, &store, "backup", AUDIENCE);
    let ready = "-n milkrun get repository prod -o jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    cluster.wait_for("the repository", ready, |said| said == "True");

    // Sessions of a minute: several of them make one backup, and another one the restore.
    start_application(&cluster, "shop");
    for name in ["first", "second"] {
        back_up(&cluster, "shop", name);
        wait_for_success(&cluster, "backup", "shop", name);
    }
    cluster.kubectl("create namespace copy");
    restore(&cluster, "back", "shop", "copy", "");
    wait_for_success(&cluster, "restore", "milkrun", "back");
}
