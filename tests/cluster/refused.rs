//! Access control: certificates, nodes, roles, targets.

use milkrun_tests::binary::ran;
use milkrun_tests::cluster::Cluster;

use crate::many_nodes::two_nodes;

#[test]
fn a_certificate_says_who_you_are_and_what_you_may() {
    let c = Cluster::in_directory();
    c.repository().run(["init"]).ok();
    two_nodes(&c);
    let coordinator = c.coordinator();
    let _a = c.agent("node-a");
    c.wait_for_agents(&["node-a"]);

    // Agents: another node's name, an unknown node, a foreign authority. Both sides log why.
    let a_tls = c.folder().join("certs/agent-node-a");
    let impostor = c.agent_as("node-b", &a_tls);
    let why = "the certificate is that of the agent of node node-a, not of node node-b's agent";
    impostor.wait_for_log(why);
    coordinator.wait_for_log(why);
    let stranger = c.agent("node-x");
    stranger.wait_for_log("the inventory has no node node-x");
    coordinator.wait_for_log("the inventory has no node node-x");
    let theirs = c.folder().join("theirs").display().to_string();
    c.repository().run(["certs", "authority", "--folder", &theirs]).ok();
    let foreign = c.repository().run(["certs", "agent", "--folder", &theirs, "node-b"]).ok();
    let foreign = c.agent_as("node-b", foreign.out.trim().as_ref());
    foreign.wait_for_log("UnknownIssuer");
    coordinator.wait_for_log("UnknownCA");

    // People.
    let as_user = |user: &str, roles: &[&str], args: &[&str]| ran(c.command(user, roles, args).output());
    as_user("viewer", &["view"], &["runs"]).ok();
    as_user("viewer", &["view"], &["backup", "shop"]).fails(1, "has no role for backup of shop");
    as_user("other", &["backup:bank"], &["backup", "shop"]).fails(1, "has no role for backup of shop");
    as_user("viewer", &["view"], &["drain", "node-a"]).fails(1, "has no role for operate");
    let (folder, file) =
        (c.folder().join("manifests").display().to_string(), c.folder().join("x").display().to_string());
    as_user("viewer", &["view"], &["restore", "shop", "--manifests", &folder]).fails(1, "has no role for restore");
    // An agent's certificate gives no access to the control service.
    ran(c.command_as(&a_tls, &["runs"]).output()).fails(1, "the agent of node node-a has no role for view");
    ran(c.command_as(&a_tls, &["backup", "shop"]).output()).fails(1, "has no role for backup");
    // A user's certificate is not accepted for an agent.
    let user = c.agent_as("node-b", &c.folder().join("certs/user-viewer"));
    user.wait_for_log("the certificate is that of user viewer, not of node node-b's agent");

    // Orders: applications that the inventory does not have, and targets that restores may not write to.
    c.run(&["backup", "bank"]).fails(2, "the inventory has no application bank");
    c.run(&["backup", "shop", "--volume", "x=/etc/passwd"]).fails(2, "inventory");
    c.run(&["restore", "shop", "--volume", &format!("data={file}")]).fails(2, "NODE:PATH");
    c.run(&["backup", "shop", "--lock-for", "50y", "--yes"]).fails(2, "a coordinator takes at most");
    c.run(&["cancel", "0123456789abcdef"]).fails(1, "no such run");
    ran(c.command_as(c.folder(), &["runs"]).output()).fails(1, "can't read");
}
