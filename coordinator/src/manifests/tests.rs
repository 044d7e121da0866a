use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn load_text(name: &str, text: &str) -> Result<Vec<Object>, LoadError> {
    load(&[(PathBuf::from(name), text)])
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
fn the_items_of_a_typed_list_are_of_its_kind() {
    let typed = "apiVersion: apps/v1\nkind: DeploymentList\nitems:\n- metadata: {name: a}\n- {apiVersion: v1, kind: Pod, metadata: {name: b}}\n";
    let objects = load_text("x.yaml", typed).unwrap();
    assert_eq!(objects[0].value, json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}}));
    assert_eq!(objects[1].identity.to_string(), "Pod b");
    assert!(refused("x.yaml", "apiVersion: v1\nkind: List\nitems: [{metadata: {name: a}}]\n").contains("apiVersion"));
    // Not every kind with items is a list.
    let menu = "apiVersion: a/v1\nkind: Menu\nmetadata: {name: a}\nitems: [1]\n";
    assert_eq!(load_text("x.yaml", menu).unwrap()[0].value["items"], json!([1]));
}

#[test]
fn round_trips_as_json_lines() {
    let text = format!("{MANY}spec: [103340282176.61371, 1e3, 9223372036854775808, 1e-7, 5.167242759862e270, 0644]\n");
    let mut objects = load_text("x.yaml", &text).unwrap();
    let bytes = encode(&mut objects);
    let mut again = decode(&bytes).unwrap();
    assert_eq!(again, objects);
    assert_eq!(encode(&mut again), bytes);
    assert_eq!(decode(b"{}\n"), Err(1));
}

#[test]
fn says_file_and_line_of_what_is_wrong() {
    assert!(refused("x.yaml", "apiVersion: v1\nkind: [\n").starts_with("x.yaml:"));
    assert!(refused("x.yaml", "---\na: 1\n---\n\nkind: Pod\nmetadata: {name: a}\n").starts_with("x.yaml:2:"));
    assert!(refused("x.yaml", "apiVersion: v1\nkind: Pod\n---\n").contains("metadata.name"));
    assert!(refused("x.yaml", "just text").contains("is not an object"));
    assert!(refused("x.json", "{\n\"a\": ]").starts_with("x.json:2:"));
    assert!(refused("x.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nkind: Job\n").starts_with("x.yaml:4:"));
    assert!(refused("x.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nkind: Job\n").contains("twice"));
    assert!(refused("x.json", r#"{"apiVersion":"v1","kind":"Pod","kind":"Job"}"#).contains("twice"));
    let twice = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n";
    assert_eq!(refused("x.yaml", twice), "x.yaml:5: Pod a is at x.yaml:1 already");
    let error = load(&[(PathBuf::from("x.yaml"), &b"a: 1\nb: \xe4\n"[..])]).unwrap_err().to_string();
    assert_eq!(error, "x.yaml:2: the file is not UTF-8 text (nor UTF-16 with a byte order mark)");
}

#[test]
fn what_names_an_object_is_text() {
    let pod = |metadata: &str| load_text("x.yaml", &format!("apiVersion: v1\nkind: Pod\nmetadata: {metadata}\n"));
    for (metadata, said) in [
        ("{name: a, namespace: true}", "has a metadata.namespace that is no text: it reads as true"),
        ("{name: a, namespace: 1_0}", "has a metadata.namespace that is no text: it reads as 10"),
        ("{name: a, namespace: [b]}", "has a metadata.namespace that is no text: it reads as a list"),
        ("{name: on}", "has a metadata.name that is no text: it reads as true"),
        ("{name: 1e3}", "has a metadata.name that is no text: it reads as 1000"),
        ("{name: ''}", "has no metadata.name"),
        ("{name: }", "has no metadata.name"),
        ("[name]", "has no metadata.name"),
    ] {
        let error = pod(metadata).unwrap_err().to_string();
        assert!(error.starts_with(&format!("x.yaml:1: the document {said}")), "{error}");
    }
    for metadata in ["{name: a, namespace: ''}", "{name: a, namespace: ~}", "{name: a}"] {
        assert_eq!(pod(metadata).unwrap()[0].identity.to_string(), "Pod a");
    }
    assert!(refused("x.yaml", "apiVersion: 1\nkind: Pod\nmetadata: {name: a}\n").contains("apiVersion"));
    assert!(refused("x.yaml", "apiVersion: v1\nkind: y\nmetadata: {name: a}\n").contains("kind"));
}

#[test]
fn a_mounted_config_map_is_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let data = "..2026_11_29_12_00_00.123";
    std::fs::create_dir(path(data)).unwrap();
    std::fs::write(path(data).join("a.yaml"), "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n").unwrap();
    std::os::unix::fs::symlink(data, path("..data")).unwrap();
    std::os::unix::fs::symlink("..data/a.yaml", path("a.yaml")).unwrap();
    assert_eq!(load_paths(&[folder.path().to_owned()]).unwrap().len(), 1);
    // A folder that is given directly is read, also with such a name.
    assert_eq!(load_paths(&[path("..data")]).unwrap().len(), 1);
    std::fs::remove_file(path("a.yaml")).unwrap();
    assert!(matches!(load_paths(&[folder.path().to_owned()]), Err(LoadError::Nothing(_))));
}

#[test]
fn a_byte_order_mark_is_no_content() {
    let text = "\u{feff}apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n";
    assert_eq!(load_text("x.yaml", text).unwrap().len(), 1);
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(load(&[(PathBuf::from("x.yaml"), utf16)]).unwrap().len(), 1);
}

/// Pieces of YAML, so that many of the texts parse.
fn soup() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec![
        "a",
        "b: ",
        ": ",
        ":",
        "- ",
        "-",
        "? ",
        "\n",
        "\n  ",
        "\n    ",
        " ",
        "{",
        "}",
        "[",
        "]",
        ",",
        "&x ",
        "*x",
        "!!str",
        "!x",
        "!",
        "!<",
        ">",
        "|",
        "|\n",
        "'",
        "\"",
        "\\",
        "\\x4",
        "\\U0010",
        "#",
        "---",
        "\n---\n",
        "\n...\n",
        "\t",
        "<<: ",
        "~",
        "\r",
        "%YAML 1.1\n",
        "%TAG ! x\n",
        "@",
        "`",
        "0x1",
        "1e9",
        "2001-01-01",
        "!!binary ",
        "!%C3%A4 ",
        "\u{feff}",
        "\u{85}",
        "\u{2028}",
        "\u{e000}",
        "\u{1f600}",
    ]);
    prop::collection::vec(token, 0..30).prop_map(|tokens| tokens.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_are_too_bad(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = load(&[(PathBuf::from("x.yaml"), bytes)]);
    }

    #[test]
    fn no_text_is_too_bad(text in "\\PC{0,60}", soup in soup()) {
        let _ = load_text("x.yaml", &text);
        let _ = load_text("x.yaml", &soup);
        let _ = load_text("x.yaml", &format!("a: [{soup}"));
        let _ = load_text("x.yaml", &format!("a: \"{soup}"));
    }

    #[test]
    fn what_is_loaded_is_stored_exactly(text in soup()) {
        let head = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nx: ";
        if let Ok(mut objects) = load_text("x.yaml", &format!("{head}{text}")) {
            let bytes = encode(&mut objects);
            prop_assert_eq!(decode(&bytes).unwrap(), objects);
        }
    }

    #[test]
    fn floats_come_back(f in any::<f64>().prop_filter("JSON has no others", |f| f.is_finite())) {
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nx: {f:e}\n");
        let mut objects = load_text("x.yaml", &text).unwrap();
        prop_assert_eq!(objects[0].value["x"].as_f64(), Some(f + 0.0));
        let bytes = encode(&mut objects);
        prop_assert_eq!(decode(&bytes).unwrap(), objects);
    }

    #[test]
    fn json_is_the_same_as_yaml(value in json_value()) {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "x": value});
        let json = load_text("x.json", &object.to_string()).unwrap();
        let yaml = load_text("x.yaml", &format!("---\n{object}\n")).unwrap();
        prop_assert_eq!(&json[0].value, &object);
        prop_assert_eq!(json, yaml);
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z0-9:#{}'\\\\\"\n\t -]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 30, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,5}", inner, 0..5).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}
