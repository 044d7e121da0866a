//! What a stolen token reaches: each process's token is taken, and what it must not reach is tried.

use crate::installed::with_store;

#[test]
fn a_stolen_token_reaches_what_its_account_may_and_no_more() {
    let Some((cluster, _store)) = with_store("a_stolen_token_reaches_what_its_account_may_and_no_more", 1) else {
        return;
    };
    let server = cluster.kubectl("config view -o jsonpath={.clusters[0].cluster.server}");
    let may = |account: &str, what: &str| {
        let token = cluster.kubectl(&format!("-n milkrun create token milkrun-{account}"));
        // With the token alone: an administrator's certificate would count for more.
        let mut words = vec!["--kubeconfig=/dev/null", "--server", &server, "--insecure-skip-tls-verify"];
        words.extend(["--token", token.trim(), "auth", "can-i"]);
        words.extend(what.split_whitespace());
        // Before its answer it warns of kinds without a namespace.
        cluster.try_kubectl(&words).out.trim().lines().last().unwrap_or_default().to_owned()
    };
    for (account, what) in [
        ("agent", "get secrets -n milkrun"),
        ("agent", "list pods -n milkrun"),
        ("agent", "get nodes"),
        ("agent", "create tokenreviews.authentication.k8s.io"),
        ("operator", "get secrets -n milkrun"),
        ("operator", "list secrets -A"),
        ("operator", "create pods -n milkrun"),
        ("operator", "create pods -n default"),
        ("operator", "create pods/exec -n milkrun"),
        ("operator", "get configmaps -n milkrun"),
        ("operator", "patch repositories.milkrun.dev -n milkrun"),
        ("operator", "create clusterrolebindings.rbac.authorization.k8s.io"),
        ("coordinator", "list secrets -n milkrun"),
        ("coordinator", "get secrets -n default"),
        ("coordinator", "create pods -n milkrun"),
        ("coordinator", "get persistentvolumeclaims -A"),
        ("coordinator", "delete secrets -n milkrun"),
    ] {
        assert_eq!(may(account, what), "no", "{account}: {what}");
    }
    for (account, what) in
        [("operator", "create pods -n milkrun-work"), ("coordinator", "create tokenreviews.authentication.k8s.io")]
    {
        assert_eq!(may(account, what), "yes", "{account}: {what}");
    }
}
