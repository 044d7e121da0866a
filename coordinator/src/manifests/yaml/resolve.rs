//! The value of a scalar, by the rules of go-yaml v2.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::{number, timestamp};

/// The prefix of the tags of YAML's own types.
const YAML: &str = "tag:yaml.org,2002:";

/// Go's decoder ignores the bits that are left over.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// A resolved scalar.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Int(i64),
    /// Used only above the largest `i64`.
    Uint(u64),
    Float(f64),
    Text(String),
}

/// What a plain text looks like.
enum Looks {
    Like(&'static str, Scalar),
    /// It stays text, and may be tagged as a time.
    Time,
    Text,
}

/// Whether a mapping's key stands for a merge.
pub(super) fn is_merge(text: &str, plain: bool, tag: Option<&str>) -> bool {
    text == "<<" && (tag.map_or(plain, |t| t == "!" || t.strip_prefix(YAML) == Some("merge")))
}

/// Resolves a scalar.
///
/// # Errors
/// The reason why it does not fit its tag.
pub(super) fn resolve(text: &str, plain: bool, tag: Option<&str>) -> Result<Scalar, String> {
    let wanted = match tag {
        None if plain => "",
        None => return Ok(Scalar::Text(text.into())),
        Some(tag) => match tag.strip_prefix(YAML) {
            Some("binary") => return binary(text),
            Some(own @ ("bool" | "float" | "int" | "null" | "timestamp")) => own,
            // `!!str`, `!` and all other tags: the text is not resolved.
            _ => return Ok(Scalar::Text(text.into())),
        },
    };
    match (looks(text, matches!(wanted, "" | "timestamp")), wanted) {
        (Looks::Like(_, scalar), "") => Ok(scalar),
        (Looks::Like(kind, scalar), _) if kind == wanted => Ok(scalar),
        (Looks::Like("int", Scalar::Int(int)), "float") => Ok(Scalar::Float(int as f64)),
        (Looks::Time, _) | (Looks::Text, "") => Ok(Scalar::Text(text.into())),
        _ => Err(format!("{text:?} is no !!{wanted}")),
    }
}

fn binary(text: &str) -> Result<Scalar, String> {
    let packed: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    let bytes = BASE64.decode(packed).map_err(|_| "a !!binary value that is no base64".to_owned())?;
    // kubectl replaces each byte that is not UTF-8 by U+FFFD.
    let text =
        String::from_utf8(bytes).map_err(|_| "a !!binary value that is no text, so JSON can't hold it".to_owned())?;
    Ok(Scalar::Text(text))
}

/// The value of plain text without a tag. `times`: whether it may be a time.
fn looks(text: &str, times: bool) -> Looks {
    let float = |f| Looks::Like("float", Scalar::Float(f));
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Looks::Like("null", Scalar::Null),
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Looks::Like("bool", Scalar::Bool(true));
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Looks::Like("bool", Scalar::Bool(false));
        }
        ".nan" | ".NaN" | ".NAN" => return float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return float(f64::NEG_INFINITY),
        _ => {}
    }
    match text.as_bytes().first() {
        Some(b'.') => number::fraction(text).map_or(Looks::Text, float),
        Some(b'+' | b'-' | b'0'..=b'9') if times && timestamp::is_timestamp(text) => Looks::Time,
        Some(b'+' | b'-' | b'0'..=b'9') => match number::parse(text) {
            Some(number::Number::Int(int)) => Looks::Like("int", Scalar::Int(int)),
            Some(number::Number::Uint(uint)) => Looks::Like("int", Scalar::Uint(uint)),
            Some(number::Number::Float(f)) => float(f),
            None => Looks::Text,
        },
        _ => Looks::Text,
    }
}
