//! What a trial found, and what would help.

use std::time::Instant;

use serde::Serialize;

use super::cluster::Ended;

/// One step of a trial.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Step {
    /// What it was.
    pub(crate) name: String,
    /// How long it took, in seconds.
    pub(crate) seconds: f64,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<String>,
    /// How long each part of it took, in seconds, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) parts: Vec<(String, f64)>,
}

/// What a trial found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    /// The storage class.
    pub(crate) class: String,
    /// The namespace that the trial had.
    pub(crate) namespace: String,
    /// The rule that the class needs; empty: none.
    pub(crate) rule: &'static str,
    /// All steps, in their order.
    pub(crate) steps: Vec<Step>,
    #[serde(skip)]
    since: Instant,
}

/// What a failure has in it, and what would help.
const ADVICE: [(&str, &str); 9] = [
    (
        "no VolumeSnapshotClass",
        "Make a VolumeSnapshotClass for the driver: without snapshots a volume can't be backed up.",
    ),
    (
        "names its secrets by template",
        "Name the class's secrets without ${...}: milkrun's claims are in another namespace.",
    ),
    ("no CSI driver", "Only volumes of CSI drivers have snapshots. Move the data to a class of a CSI driver."),
    ("exceeded quota", "Raise the quota of the namespace that the message names."),
    ("violates PodSecurity", "Label the namespace milkrun-work with pod-security.kubernetes.io/enforce=baseline."),
    ("holder pod's image", "Check that the nodes can pull milkrun's image."),
    (
        "no agent on node",
        "Check that the DaemonSet milkrun-agent runs on all nodes with volumes (taints, node selectors).",
    ),
    ("mode Block", "The driver has no volumes of mode Block: milkrun reads and writes volumes as devices."),
    ("time-out", "Look at the events of the namespace milkrun-work, and try again with a longer --step-timeout."),
];

impl Outcome {
    pub(super) fn of(class: &str, namespace: &str) -> Self {
        Self {
            class: class.to_owned(),
            namespace: namespace.to_owned(),
            rule: "",
            steps: Vec::new(),
            since: Instant::now(),
        }
    }

    /// Notes how a step ended. Returns whether it went well.
    pub(super) fn end(&mut self, name: &str, ended: Ended, tell: &mut dyn FnMut(&Step)) -> bool {
        let now = Instant::now();
        let took = now - std::mem::replace(&mut self.since, now);
        let failure = ended.failure;
        let step = Step { name: name.to_owned(), seconds: took.as_secs_f64(), failure, parts: ended.parts };
        tell(&step);
        let well = step.failure.is_none();
        self.steps.push(step);
        well
    }

    /// Whether the class works, with its rule if it needs one.
    pub(crate) fn works(&self) -> bool {
        let compared = self.steps.iter().any(|step| step.name == "mount and compare" && step.failure.is_none());
        compared && self.steps.last().is_some_and(|step| step.failure.is_none())
    }

    /// What would help.
    pub(crate) fn advice(&self) -> Option<&'static str> {
        if self.works() {
            return None;
        }
        let why = self.steps.iter().find_map(|step| step.failure.as_ref())?;
        ADVICE.iter().find(|(mark, _)| why.contains(mark)).map(|(_, advice)| *advice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(failure: Option<&str>) -> Ended {
        Ended { failure: failure.map(str::to_owned), parts: Vec::new() }
    }

    #[test]
    fn a_class_works_if_the_bytes_came_back_and_nothing_is_left() {
        let mut outcome = Outcome::of("fast", "t");
        let mut heard = Vec::new();
        let mut tell = |step: &Step| heard.push(step.name.clone());
        assert!(outcome.end("back up", ended(None), &mut tell));
        assert!(outcome.end("mount and compare", ended(None), &mut tell));
        assert!(outcome.works());
        assert!(!outcome.end("clean up", ended(Some("a volume stays")), &mut tell));
        assert!(!outcome.works());
        assert_eq!(heard, ["back up", "mount and compare", "clean up"]);
    }

    #[test]
    fn a_failure_has_advice_where_one_is_known() {
        let advice = |why: &str| {
            let mut outcome = Outcome::of("fast", "t");
            outcome.end("back up", ended(Some(why)), &mut |_| {});
            outcome.advice().map(|text| text.split(' ').take(3).collect::<Vec<_>>().join(" "))
        };
        let class = advice("claim files: there is no VolumeSnapshotClass of its driver d");
        assert_eq!(class.as_deref(), Some("Make a VolumeSnapshotClass"));
        assert_eq!(advice("this driver has no volumes of mode Block").as_deref(), Some("The driver has"));
        assert_eq!(advice("something else"), None);
    }
}
