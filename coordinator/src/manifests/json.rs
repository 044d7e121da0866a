//! JSON values as kubectl reads them, but stricter: a key occurs once, and nothing is replaced by U+FFFD.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::problem::Problem;

/// The characters that may stand between two values.
pub(super) const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// How deep mappings and lists may nest: as deep as `serde_json` reads them back from a restore point.
pub(super) const DEPTH_LIMIT: usize = 127;

/// A number after kubectl wrote it as JSON and read it again: a number without a fraction becomes an integer if it fits.
pub(super) fn number(f: f64) -> Option<Number> {
    if f.fract() == 0.0
        && f.abs() < 1e21
        && let Ok(int) = f.to_string().parse::<i64>()
    {
        return Some(int.into());
    }
    Number::from_f64(f)
}

/// The length in bytes of the JSON value that a text begins with. Its numbers and escapes are not checked.
pub(super) fn end_of_value(text: &str) -> Result<usize, Problem> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    match values.next() {
        Some(Err(e)) => Err(problem(&e)),
        _ => Ok(values.byte_offset()),
    }
}

/// The value of a JSON text.
pub(super) fn parse(text: &str) -> Result<Value, Problem> {
    serde_json::from_str::<Strict>(text).map(|v| v.0).map_err(|e| problem(&e))
}

fn problem(e: &serde_json::Error) -> Problem {
    // The message ends with the position within this value.
    let message = e.to_string();
    let reason = message.rsplit_once(" at line ").map_or(message.as_str(), |(reason, _)| reason);
    Problem::new(e.line().max(1), reason)
}

/// A JSON value in which each key occurs once.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Value, E> {
        // Above the largest `int64`, Kubernetes has only floats.
        i64::try_from(v).map_or_else(|_| self.visit_f64(v as f64), |v| Ok(v.into()))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Value, E> {
        number(v).map(Value::Number).ok_or_else(|| E::custom("not a number that JSON can hold"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(Strict(v)) = seq.next_element()? {
            out.push(v);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if out.contains_key(&key) {
                return Err(de::Error::custom(format!("the key {key:?} stands twice")));
            }
            let Strict(value) = map.next_value()?;
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_what_kubectl_prints() {
        let list =
            "[1.0, 1e3, -0, -0.0, 9223372036854775807, 9223372036854775808, 1e21, 1e-8, 1.5, 9223372036854774784.0]";
        let want = json!([
            1,
            1000,
            0,
            0,
            i64::MAX,
            9_223_372_036_854_775_808_f64,
            1e21,
            1e-8,
            1.5,
            9_223_372_036_854_775_000_i64
        ]);
        assert_eq!(parse(list).unwrap(), want);
        assert!(parse("1e400").is_err());
    }

    #[test]
    fn a_value_ends_before_the_next_one() {
        assert_eq!(end_of_value("{\"a\":[1e400,\"\\ud800\"]} x").unwrap(), 22);
        assert_eq!(end_of_value("{\n\"a\" 1}").unwrap_err().line, 2);
        assert!(parse("\"\\ud800\"").is_err(), "kubectl would put U+FFFD");
        assert!(parse("{\"a\":1,\"\\u0061\":2}").unwrap_err().reason.contains("twice"));
    }

    #[test]
    fn depth_is_what_can_be_read_back() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(parse(&nested(DEPTH_LIMIT)).is_ok());
        assert!(parse(&nested(DEPTH_LIMIT + 1)).is_err());
    }
}
