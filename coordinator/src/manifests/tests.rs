use std::path::PathBuf;

use super::*;

fn load_text(name: &str, text: &str) -> Result<Vec<Object>, LoadError> {
    load(&[(PathBuf::from(name), text.to_owned())])
}

fn refused(name: &str, text: &str) -> String {
    load_text(name, text).unwrap_err().to_string()
}

const MANY: &str = "# a comment\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: shop}\ndata:\n  n: '1'\n  block: |\n    ---not a marker\n    x\n---\n\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: a\n";

#[test]
fn reads_many_documents_and_unrolls_lists() {
    let objects = load_text("x.yaml", MANY).unwrap();
    let names: Vec<String> = objects.iter().map(|o| o.identity.to_string()).collect();
    assert_eq!(names, ["ConfigMap shop/a", "Deployment.apps a"]);
    assert_eq!(objects[0].value["data"]["block"], "---not a marker\nx\n");
    let list =
        r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s"}}]}"#;
    assert_eq!(load_text("x.json", list).unwrap()[0].identity.kind, "Secret");
}

#[test]
fn round_trips_as_json_lines() {
    let mut objects = load_text("x.yaml", MANY).unwrap();
    let bytes = encode(&mut objects);
    assert_eq!(decode(&bytes).unwrap(), objects);
    assert_eq!(decode(b"{}\n"), Err(1));
}

#[test]
fn says_file_and_line_of_what_is_wrong() {
    assert!(refused("x.yaml", "apiVersion: v1\nkind: [\n").starts_with("x.yaml:"));
    assert!(refused("x.yaml", "---\na: 1\n---\n\nkind: Pod\nmetadata: {name: a}\n").starts_with("x.yaml:2:"));
    assert!(refused("x.yaml", "apiVersion: v1\nkind: Pod\n---\n").contains("metadata.name"));
    assert!(refused("x.yaml", "just text").contains("is not an object"));
    assert!(refused("x.json", "{\n\"a\": }").starts_with("x.json:2:"));
    assert!(refused("x.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nkind: Job\n").contains("twice"));
    assert!(refused("x.json", r#"{"apiVersion":"v1","kind":"Pod","kind":"Job"}"#).contains("twice"));
    let twice = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n";
    assert_eq!(refused("x.yaml", twice), "x.yaml:5: Pod a is at x.yaml:1 already");
}

#[test]
fn an_object_has_a_file_of_its_own() {
    let id = |kind: &str, name: &str| Identity {
        group: "apps".into(),
        kind: kind.into(),
        namespace: "n".into(),
        name: name.into(),
    };
    assert_eq!(id("Deployment", "web").file_name(), "deployment_apps_n_web.json");
    let names: std::collections::HashSet<String> =
        ["a/b", "a_b", "A_b", "a:b", &"x".repeat(300)].iter().map(|n| id("Role", n).file_name()).collect();
    assert_eq!(names.len(), 5);
    assert!(names.iter().all(|n| !n.contains('/') && n.len() < 255));
}
