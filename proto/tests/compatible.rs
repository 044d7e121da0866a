//! Agents and coordinators one minor release apart talk to each other, in both directions. So nothing of the last release's wire may
//! change: every message, field, number, type, enum value and call is still there, as it was. `released/` keeps those files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;

use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};

/// Everything that a peer relies on, by its full name.
fn wire(set: &FileDescriptorSet) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for file in &set.file {
        let package = file.package();
        for m in &file.message_type {
            message(&mut out, package, m);
        }
        for e in &file.enum_type {
            values(&mut out, package, e);
        }
        for s in &file.service {
            for c in &s.method {
                let what = format!(
                    "{} {} -> {} {}",
                    c.client_streaming(),
                    c.input_type(),
                    c.server_streaming(),
                    c.output_type()
                );
                out.insert(format!("{package}.{}.{}", s.name(), c.name()), what);
            }
        }
    }
    out
}

fn message(out: &mut BTreeMap<String, String>, scope: &str, m: &DescriptorProto) {
    let name = format!("{scope}.{}", m.name());
    for f in &m.field {
        // One that becomes optional or moves into a oneof is read the same; one that becomes repeated is not.
        let what = format!("{:?} {:?} {} oneof {:?}", f.r#type(), f.label(), f.type_name(), f.oneof_index.map(|_| ()));
        out.insert(format!("{name} field {} {}", f.number(), f.name()), what);
    }
    out.insert(name.clone(), String::new());
    for nested in &m.nested_type {
        message(out, &name, nested);
    }
    for e in &m.enum_type {
        values(out, &name, e);
    }
}

fn values(out: &mut BTreeMap<String, String>, scope: &str, e: &EnumDescriptorProto) {
    for v in &e.value {
        out.insert(format!("{scope}.{}.{}", e.name(), v.name()), v.number().to_string());
    }
}

#[test]
fn the_last_release_s_wire_is_still_spoken() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let now = protox::compile(["milkrun/agent/v1/agent.proto", "milkrun/control/v1/control.proto"], [root]).unwrap();
    let now = wire(&now);
    let mut looked = 0;
    for release in std::fs::read_dir(root.join("released")).unwrap() {
        let release = release.unwrap().path();
        let then = wire(&protox::compile(["agent.proto", "control.proto"], [&release]).unwrap());
        assert!(then.len() > 50, "{release:?} says hardly anything");
        for (name, what) in then {
            assert_eq!(now.get(&name), Some(&what), "{name}, as release {release:?} has it");
        }
        looked += 1;
    }
    assert!(looked > 0);
}
