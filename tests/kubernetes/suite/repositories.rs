//! `Repository` objects: what is wrong is said in seconds, what is right again is used, and none is made unasked.

use crate::installed::{repository, secret, with_store};

#[test]
fn a_wrong_repository_says_why_and_a_right_one_is_used() {
    let Some((cluster, store)) = with_store("a_wrong_repository_says_why_and_a_right_one_is_used", 1) else { return };
    let message = "-n milkrun get repository prod -o jsonpath={.status.message}";
    let ready = "-n milkrun get repository prod -o jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";

    cluster.apply(&repository("prod", &store, ""));
    cluster.wait_for("its status", message, |said| said.contains("there is no Secret prod"));
    cluster.apply(&secret("prod", ""));
    cluster.wait_for("its status", message, |said| said.contains("has no password"));
    // A mistyped prefix must not become an empty repository.
    cluster.apply(&secret("prod", "right"));
    cluster.wait_for("its status", message, |said| said.contains("there is no repository at"));
    cluster.apply(&repository("prod", &store, ", create: true"));
    cluster.wait_for("its status", ready, |said| said == "True");
    assert_eq!(cluster.kubectl(message), "");
    let key = cluster.kubectl("-n milkrun get secret prod-recovery-key -o jsonpath={.data.recoveryKey}");
    assert!(key.len() > 20);

    // Another one with a wrong password does not stop the first.
    cluster.apply(&secret("dr", "wrong"));
    let second = repository("dr", &store, "").replace("backups/dr", "backups/prod");
    cluster.apply(&second);
    let of_second = message.replace(" prod ", " dr ");
    cluster.wait_for("its status", &of_second, |said| said.contains("key files opens"));
    assert_eq!(cluster.kubectl(ready), "True");

    // Nonsense is refused when it is applied.
    for (wrong, why) in [
        (repository("x", &store, "").replace("s3://backups/x", "backups/x"), "write s3://bucket/prefix"),
        (repository("prod", &store, "").replace("backups/prod", "backups/other"), "stays where it is"),
    ] {
        let said = cluster.try_apply(&wrong);
        assert!(!said.ok && said.out.contains(why), "{}", said.out);
    }
}
