//! Facts of a claim and its volume that a restore point keeps, so that a restore can make them again anywhere.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde::{Deserialize, Serialize};

use crate::consumer::Consumer;

/// What a point knows of a claim. It is stored as a JSON object; fields may be added, and none may change its meaning.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimFacts {
    /// The storage class.
    pub storage_class: String,
    /// `Block` or `Filesystem`.
    pub volume_mode: String,
    /// How it may be mounted.
    pub access_modes: Vec<String>,
    /// The size that was asked for, as Kubernetes writes sizes.
    pub size: String,
    /// The CSI driver.
    pub driver: String,
    /// The file system, for mode Filesystem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fs_type: Option<String>,
    /// The name of the pod that used it: volumes of one pod must come to lie where it can reach all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// What that pod asks of its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumer: Option<Consumer>,
    /// Its file system was frozen while all snapshots were cut, and writers waited for so many milliseconds at most; `None`: it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen_ms: Option<i64>,
    /// The group whose volumes were cut at one moment with it; `None`: it was cut by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Mount options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mount_options: Vec<String>,
}

impl ClaimFacts {
    /// Those of a claim that is bound to this volume.
    #[must_use]
    pub fn of(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Self {
        let spec = claim.spec.clone().unwrap_or_default();
        let of = volume.spec.clone().unwrap_or_default();
        let csi = of.csi.unwrap_or_default();
        let requests = spec.resources.and_then(|resources| resources.requests).unwrap_or_default();
        let mode = spec.volume_mode.unwrap_or_else(|| "Filesystem".into());
        Self {
            storage_class: spec.storage_class_name.unwrap_or_default(),
            fs_type: csi.fs_type.filter(|_| mode == "Filesystem"),
            volume_mode: mode,
            access_modes: spec.access_modes.unwrap_or_default(),
            size: requests.get("storage").map(|quantity| quantity.0.clone()).unwrap_or_default(),
            driver: csi.driver,
            pod: None,
            consumer: None,
            frozen_ms: None,
            group: None,
            mount_options: of.mount_options.unwrap_or_default(),
        }
    }

    /// As [`Self::to_json`] wrote them; of a point that was made outside of Kubernetes, nothing is known.
    ///
    /// # Errors
    /// In words: they can't be read.
    pub fn read(json: &str) -> Result<Self, String> {
        if json.is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_str(json).map_err(|e| format!("what the point says of its claim can't be read: {e}"))
    }

    /// As one line of JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Bytes of a size as Kubernetes writes it.
#[must_use]
pub fn bytes(quantity: &str) -> Option<i64> {
    let at = quantity.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(quantity.len());
    let (number, unit) = quantity.split_at(at);
    let power = |base: i64, n: u32| base.checked_pow(n);
    let unit = match unit {
        "" => Some(1),
        "k" => power(1000, 1),
        "M" => power(1000, 2),
        "G" => power(1000, 3),
        "T" => power(1000, 4),
        "P" => power(1000, 5),
        "Ki" => power(1024, 1),
        "Mi" => power(1024, 2),
        "Gi" => power(1024, 3),
        "Ti" => power(1024, 4),
        "Pi" => power(1024, 5),
        _ => None,
    }?;
    match number.split_once('.') {
        None => number.parse::<i64>().ok()?.checked_mul(unit),
        // A part of a unit is rare, and rounded up.
        Some((whole, part)) => {
            let scale = 10_i128.checked_pow(u32::try_from(part.len()).ok()?)?;
            let digits = format!("{whole}{part}").parse::<i128>().ok()?;
            let total = digits.checked_mul(i128::from(unit))?;
            i64::try_from((total + scale - 1) / scale).ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ClaimFacts, bytes};

    #[test]
    fn facts_are_read_as_they_were_written_or_not_at_all() {
        let facts = ClaimFacts { size: "1Gi".into(), frozen_ms: Some(40), ..ClaimFacts::default() };
        assert_eq!(ClaimFacts::read(&facts.to_json()), Ok(facts));
        assert_eq!(ClaimFacts::read(""), Ok(ClaimFacts::default()));
        assert_eq!(ClaimFacts::read(r#"{"newer": 1}"#), Ok(ClaimFacts::default()));
        assert!(ClaimFacts::read(r#"{"size": 1}"#).is_err());
    }

    #[test]
    fn sizes_are_read_as_kubernetes_writes_them() {
        for (text, wanted) in [
            ("1Gi", Some(1 << 30)),
            ("128974848", Some(128_974_848)),
            ("129M", Some(129_000_000)),
            ("1.5Ki", Some(1536)),
        ] {
            assert_eq!(bytes(text), wanted, "{text}");
        }
        for bad in ["", "Gi", "1Xi", "-1", "99999999999Pi"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
