//! Manifests mean the same to milkrun as to kubectl: both read the same files.
//!
//! `kubectl patch --local` with an empty patch prints the objects of a file as kubectl reads them, and needs no
//! cluster. One call reads a folder of files; it goes on after a file that it refuses, and names that file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod cases;
mod generate;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use milkrun_coordinator::manifests;
use milkrun_tests::skip;
use serde_json::{Number, Value};

/// Generated files.
const GENERATED: usize = 2000;
const SEED: u64 = 20_261_129;

/// A file, and what is expected of it.
pub(crate) struct Case {
    /// The file. `NAME` in it is a name that no other file has.
    pub(crate) bytes: Vec<u8>,
    pub(crate) expect: Expect,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Expect {
    /// Both read the same objects from it.
    Same,
    /// Both refuse it.
    Refused,
    /// kubectl accepts it, and milkrun refuses it with an error that has this text.
    Stricter(&'static str),
    /// milkrun accepts it, and kubectl refuses it.
    Laxer,
    /// A generated file: both read the same objects, or both refuse it, or milkrun refuses it for a reason in
    /// [`STRICTER`].
    Any,
}

/// The reasons for which milkrun may refuse a generated file that kubectl accepts.
const STRICTER: [&str; 6] = [
    "stands twice",
    "after the document's end",
    "so JSON can't hold it",
    "make another number of",
    "a comma right after a tag",
    "found unexpected ':'",
];

#[test]
fn files_mean_what_kubectl_makes_of_them() {
    let Some(kubectl) = std::env::var_os("MILKRUN_TEST_KUBECTL") else {
        skip("kubectl: files_mean_what_kubectl_makes_of_them", "MILKRUN_TEST_KUBECTL does not name a kubectl");
        return;
    };
    let cases: Vec<Case> = cases::all().into_iter().chain(generate::files(SEED, GENERATED)).collect();
    let folder = tempfile::tempdir().expect("a folder");
    let files: Vec<PathBuf> = (0..cases.len()).map(|i| folder.path().join(format!("{}.yaml", name(i)))).collect();
    for (i, case) in cases.iter().enumerate() {
        std::fs::write(&files[i], named(&case.bytes, &name(i))).expect("a file");
    }
    let theirs = Theirs::of(Path::new(&kubectl), folder.path());
    let mut wrong = Vec::new();
    let mut tally: HashMap<&str, usize> = HashMap::new();
    for (i, case) in cases.iter().enumerate() {
        let ours = ours(&files[i]);
        let theirs = theirs.file(&name(i));
        match verdict(case.expect, &ours, theirs) {
            Ok(kind) => *tally.entry(kind).or_default() += 1,
            Err(what) => wrong.push(format!(
                "{what}, expected {:?}:\n{}\n  ours: {ours:?}\n  kubectl: {theirs:?}\n",
                case.expect,
                String::from_utf8_lossy(&case.bytes)
            )),
        }
    }
    println!("{} files: {tally:?}", cases.len());
    assert!(wrong.is_empty(), "{} of {} files differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    // Not all generated files may be refused.
    assert!(tally.get("same").is_some_and(|same| *same > cases.len() / 2), "{tally:?}");
}

fn verdict(
    expect: Expect,
    ours: &Result<Vec<Value>, String>,
    theirs: Option<&Vec<Value>>,
) -> Result<&'static str, &'static str> {
    match (ours, theirs, expect) {
        (Ok(ours), Some(theirs), Expect::Same | Expect::Any) if ours == theirs => Ok("same"),
        (Ok(_), Some(_), _) => Err("the objects differ"),
        (Err(_), None, Expect::Refused | Expect::Any) => Ok("refused by both"),
        (Err(_), None, _) => Err("both refuse it"),
        (Err(error), Some(_), Expect::Stricter(reason)) if error.contains(reason) => Ok("refused by us"),
        (Err(error), Some(_), Expect::Any) if STRICTER.iter().any(|r| error.contains(r)) => Ok("refused by us"),
        (Err(_), Some(_), _) => Err("we refuse it"),
        (Ok(_), None, Expect::Laxer) => Ok("refused by kubectl"),
        (Ok(_), None, _) => Err("kubectl refuses it"),
    }
}

fn name(i: usize) -> String {
    format!("case{i}")
}

/// The bytes with `NAME` replaced by a name, also in UTF-16.
fn named(bytes: &[u8], name: &str) -> Vec<u8> {
    let put = |mut bytes: Vec<u8>, mark: &[u8], name: &[u8]| {
        while let Some(at) = bytes.windows(mark.len()).position(|w| w == mark) {
            bytes.splice(at..at + mark.len(), name.iter().copied());
        }
        bytes
    };
    let wide = |text: &str, bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
    let bytes = put(bytes.to_vec(), b"NAME", name.as_bytes());
    let bytes = put(bytes, &wide("NAME", u16::to_le_bytes), &wide(name, u16::to_le_bytes));
    put(bytes, &wide("NAME", u16::to_be_bytes), &wide(name, u16::to_be_bytes))
}

fn ours(file: &Path) -> Result<Vec<Value>, String> {
    match manifests::load_paths(&[file.to_owned()]) {
        Ok(objects) => Ok(objects.into_iter().map(|o| exact(&o.value)).collect()),
        Err(e) => Err(e.to_string()),
    }
}

/// The output of kubectl for a folder.
struct Theirs {
    objects: HashMap<String, Vec<Value>>,
    errors: String,
}

impl Theirs {
    fn of(kubectl: &Path, folder: &Path) -> Self {
        let output = Command::new(kubectl)
            .args(["patch", "--local", "--type=merge", "-p", "{}", "-o", "json", "-f"])
            .arg(folder)
            .env("KUBECONFIG", "/dev/null")
            .output()
            .expect("kubectl runs");
        let mut objects: HashMap<String, Vec<Value>> = HashMap::new();
        for value in serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>() {
            let value = value.expect("kubectl prints JSON");
            let name = value["metadata"]["name"].as_str().unwrap_or_default();
            let case = name.split('-').next().unwrap_or_default().to_owned();
            objects.entry(case).or_default().push(exact(&value));
        }
        Self { objects, errors: String::from_utf8_lossy(&output.stderr).into_owned() }
    }

    /// The objects of a file; nothing if it is refused.
    fn file(&self, name: &str) -> Option<&Vec<Value>> {
        static NONE: Vec<Value> = Vec::new();
        if self.errors.contains(&format!("/{name}.yaml")) {
            return None;
        }
        Some(self.objects.get(name).unwrap_or(&NONE))
    }
}

/// Reads numbers like Kubernetes: a number that fits into a signed 64-bit integer is one, any other is a float.
fn exact(value: &Value) -> Value {
    match value {
        Value::Number(n) => Value::Number(exact_number(n)),
        Value::Array(items) => items.iter().map(exact).collect(),
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), exact(v))).collect(),
        other => other.clone(),
    }
}

fn exact_number(n: &Number) -> Number {
    match (n.as_i64(), n.as_f64()) {
        (Some(int), _) => int.into(),
        // `-0` is an integer, too.
        (None, Some(0.0)) => 0.into(),
        (None, f) => f.and_then(Number::from_f64).expect("a number"),
    }
}
