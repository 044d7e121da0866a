//! Backups by a schedule: made in time, one at once, few of them kept, and by whichever operator is there.

use crate::faults::{kill, start_small};
use crate::installed::{add_repository, with_store};
use crate::playground::Playground;

fn policy(name: &str, more: &str) -> String {
    format!(
        "apiVersion: milkrun.dev/v1alpha1\nkind: BackupPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{backup: {{repository: prod}}, {more}}}\n"
    )
}

fn message(cluster: &Playground, name: &str, wanted: &str) {
    let words = format!("-n shop get backuppolicy {name} -o jsonpath={{.status.message}}");
    cluster.wait_for(wanted, &words, |said| said.contains(wanted));
}

/// The names of the backups that are there.
fn backups(cluster: &Playground) -> Vec<String> {
    let names = cluster.kubectl("-n shop get backups -o jsonpath={.items[*].metadata.name}");
    names.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_policy_makes_backups_in_time() {
    let Some((cluster, store)) = with_store("a_policy_makes_backups_in_time", 1) else { return };
    start_small(&cluster, "shop", "data");
    add_repository(&cluster, &store, true);
    let before = cluster.inventory();

    // What can't be read is said within seconds.
    cluster.apply(&policy("wrong", "schedule: \"0 25 * * *\""));
    message(&cluster, "wrong", "the schedule can't be read");
    cluster.apply(&policy("wrong", "schedule: \"0 3 * * *\", timeZone: Nowhere/Here"));
    message(&cluster, "wrong", "there is no time zone Nowhere/Here");
    let zone = "schedule: \"0 3 * * *\", timeZone: Europe/Paris";
    cluster.apply(&policy("wrong", zone));
    let ready = "-n shop get backuppolicy wrong -o jsonpath={.status.conditions[0].status}";
    cluster.wait_for("the schedule to be read", ready, |said| said == "True");
    let next = "-n shop get backuppolicy wrong -o jsonpath={.status.next}";
    cluster.wait_for("the next moment", next, |said| said.ends_with(":00:00Z"));
    cluster.kubectl("-n shop delete backuppolicy wrong");
    assert_eq!(backups(&cluster), Vec::<String>::new());

    cluster.apply(&policy("often", "schedule: \"* * * * *\", history: 1"));
    let made = "-n shop get backuppolicy often -o jsonpath={.status.lastBackup}";
    let first = cluster.wait_for("the first one", made, |said| !said.is_empty());
    kill(&cluster, "operator");
    let second = cluster.wait_for("the second one", made, |said| !said.is_empty() && said != first);
    let status = cluster.wait_for_run("backup", "shop", &second);
    assert!(status["failure"].is_null(), "{status}");
    cluster.kubectl("-n shop patch backuppolicy often --type=merge -p {\"spec\":{\"suspend\":true}}");
    message(&cluster, "often", "suspended");
    // A third one may have begun meanwhile. All have ended, and one is kept.
    let list = "-n shop get backups -o jsonpath={.items[*].status.step}";
    cluster.wait_for("one that is over", list, |said| said == "Done");
    let last = backups(&cluster).remove(0);
    let status = cluster.wait_for_run("backup", "shop", &last);
    assert!(status["failure"].is_null(), "{status}");
    let point = "-n shop get backuppolicy often -o jsonpath={.status.lastPoint}";
    cluster.wait_for("its point", point, |said| Some(said) == status["point"].as_str());
    // Points stay when backups go, and when the policy goes.
    cluster.kubectl("-n shop delete backuppolicy often");
    cluster.wait_for("the backups to go", "-n shop get backups -o name", str::is_empty);
    let points = "-n shop get restorepoints -o name";
    cluster.wait_for("the points", points, |said| said.lines().count() >= 2);
    cluster.wait_for_inventory(&before);
}
