//! Merge patches of a status: a field that is left out must be removed, and a merge of the new status alone would keep it.

use serde::Serialize;
use serde_json::{Map, Value, json};

/// The merge patch (RFC 7386) that makes `after` of `before`.
pub fn changes<S: Serialize>(before: &S, after: &S) -> Value {
    of(&json!(before), &json!(after))
}

fn of(before: &Value, after: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (before, after) else { return after.clone() };
    let mut patch: Map<String, Value> = Map::new();
    for (key, value) in after {
        match before.get(key) {
            Some(old) if old == value => {}
            Some(old) => drop(patch.insert(key.clone(), of(old, value))),
            None => drop(patch.insert(key.clone(), value.clone())),
        }
    }
    patch.extend(before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.clone(), Value::Null)));
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_removed() {
        let before = json!({"message": "x", "volumes": {"a": {"node": "n"}, "b": {}}, "step": "Move"});
        let after = json!({"volumes": {"a": {"node": "n", "done": 1}}, "step": "Move"});
        let wanted = json!({"message": null, "volumes": {"a": {"done": 1}, "b": null}});
        assert_eq!(changes(&before, &after), wanted);
    }
}
