//! Policies from their first day on.

use jiff::Timestamp;
use milkrun_resources::condition::FAILED;
use serde_json::json;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn policy(spec: &serde_json::Value) -> BackupPolicy {
    let mut whole = json!({"schedule": "0 3 * * *", "backup": {"repository": "prod"}});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let mut policy = BackupPolicy::new("nightly", serde_json::from_value(whole).unwrap());
    policy.metadata.namespace = Some("shop".into());
    policy.metadata.uid = Some("uid".into());
    policy.metadata.creation_timestamp = Some(time(at("2026-12-01T00:00:00Z")));
    policy
}

/// A cluster with this policy alone.
struct World {
    policy: BackupPolicy,
    made: Vec<Backup>,
    all: Vec<String>,
}

impl World {
    fn new(spec: &serde_json::Value) -> Self {
        Self { policy: policy(spec), made: Vec::new(), all: Vec::new() }
    }

    /// One look. `killed`: the operator goes away before it writes status.
    fn look(&mut self, now: &str, killed: bool) -> Plan {
        let plan = plan(&self.policy, self.made.clone(), at(now));
        if let Some(backup) = &plan.make {
            self.all.push(backup.name_any());
            self.made.push(backup.clone());
        }
        self.made.retain(|made| !plan.remove.iter().any(|gone| gone.name_any() == made.name_any()));
        if !killed {
            self.policy.status = Some(plan.status.clone());
        }
        plan
    }

    /// All backups end.
    fn end(&mut self, well: bool) {
        for backup in self.made.iter_mut().filter(|backup| !is_over(backup)) {
            let mut status = milkrun_resources::BackupStatus { step: BackupStep::Done, ..Default::default() };
            status.point = well.then(|| format!("point-of-{}", backup.metadata.name.clone().unwrap()));
            let kind = if well { COMPLETE } else { FAILED };
            status.conditions.set(kind, true, "", "", None, time(at("2026-12-01T00:00:00Z")));
            backup.status = Some(status);
        }
    }
}

#[test]
fn a_backup_is_made_at_each_moment_once() {
    let mut world = World::new(&json!({}));
    let first = world.look("2026-12-01T02:59:00Z", false);
    assert_eq!((first.make.is_some(), first.again), (false, Some(Duration::from_secs(60))));
    assert_eq!(first.status.next, Some(time(at("2026-12-01T03:00:00Z"))));
    // An operator that is killed makes the same one again, and its successor writes status.
    world.look("2026-12-01T03:00:01Z", true);
    world.look("2026-12-01T03:00:05Z", false);
    world.end(true);
    let quiet = world.look("2026-12-01T03:10:00Z", false);
    assert!(quiet.make.is_none());
    assert_eq!(quiet.status.last_point.as_deref(), Some("point-of-nightly-20261201t0300z"));
    world.look("2026-12-02T03:00:00Z", false);
    assert_eq!(world.all, ["nightly-20261201t0300z", "nightly-20261202t0300z"]);
    let backup = world.made.last().unwrap();
    assert_eq!(backup.owner_references()[0].uid, "uid");
    assert_eq!((backup.namespace().as_deref(), backup.spec.repository.as_str()), (Some("shop"), "prod"));
}

#[test]
fn what_was_missed_is_made_up_once() {
    let mut world = World::new(&json!({}));
    world.look("2026-12-09T12:00:00Z", false);
    world.end(true);
    world.look("2026-12-09T12:00:10Z", false);
    assert_eq!(world.all, ["nightly-20261209t0300z"]);
    // While it is suspended, nothing is made; afterwards, once.
    world.policy.spec.suspend = true;
    let plan = world.look("2026-12-20T12:00:00Z", false);
    assert_eq!((plan.make.is_some(), plan.status.message.as_str(), plan.again), (false, "suspended", None));
    world.policy.spec.suspend = false;
    world.look("2026-12-20T13:00:00Z", false);
    world.look("2026-12-20T13:00:10Z", false);
    assert_eq!(world.all.len(), 2);
}

#[test]
fn two_never_run_at_once() {
    let mut world = World::new(&json!({"schedule": "* * * * *"}));
    world.look("2026-12-01T00:01:00Z", false);
    let plan = world.look("2026-12-01T00:02:00Z", false);
    assert_eq!((plan.make.is_some(), world.all.len()), (false, 1));
    assert!(plan.status.message.contains("waits for Backup nightly-20261201t0001z"), "{}", plan.status.message);
    world.look("2026-12-01T00:09:30Z", false);
    world.end(false);
    world.look("2026-12-01T00:09:40Z", false);
    assert_eq!(world.all, ["nightly-20261201t0001z", "nightly-20261201t0009z"]);
}

#[test]
fn a_delay_is_kept() {
    let mut world = World::new(&json!({"schedule": "*/10 * * * *", "jitterSeconds": 3600}));
    let mut now = at("2026-12-01T00:00:00Z");
    let mut begun = Vec::new();
    while now < at("2026-12-01T06:00:00Z") {
        if world.look(&now.to_string(), false).make.is_some() {
            begun.push(now);
        }
        world.end(true);
        now += SignedDuration::from_secs(20);
    }
    assert!(world.all.len() > 6, "{:?}", world.all);
    for (name, begun) in world.all.iter().zip(&begun) {
        let moment = &name["nightly-".len()..];
        let moment = jiff::civil::DateTime::strptime("%Y%m%dt%H%Mz", moment).unwrap();
        let moment = moment.to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp();
        let late = begun.duration_since(moment);
        assert!(late >= SignedDuration::ZERO && late <= SignedDuration::from_secs(3620), "{name} began at {begun}");
    }
}

#[test]
fn history_is_short_and_has_the_last_good_one() {
    let mut world = World::new(&json!({"history": 2}));
    for day in 1..=6 {
        world.look(&format!("2026-12-0{day}T03:00:00Z"), false);
        world.end(day == 2);
        world.look(&format!("2026-12-0{day}T04:00:00Z"), false);
    }
    let names: Vec<String> = world.made.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["nightly-20261202t0300z", "nightly-20261205t0300z", "nightly-20261206t0300z"]);
    assert_eq!(world.policy.status.unwrap().last_point.as_deref(), Some("point-of-nightly-20261202t0300z"));
}

#[test]
fn a_schedule_that_can_not_be_read_stands_in_status() {
    let mut world = World::new(&json!({"timeZone": "Nowhere/Here"}));
    let plan = world.look("2026-12-09T12:00:00Z", false);
    assert_eq!((plan.make.is_some(), plan.again), (false, None));
    assert!(plan.status.message.contains("no time zone Nowhere/Here"));
    assert!(!plan.status.conditions.is_true(READY));
    world.policy.spec.time_zone = Some("Europe/Paris".into());
    assert!(world.look("2026-12-09T12:00:00Z", false).status.conditions.is_true(READY));
}

#[test]
fn long_names_are_cut() {
    let mut policy = policy(&json!({}));
    policy.metadata.name = Some("x".repeat(253));
    assert_eq!(backup(&policy, at("2026-12-01T03:00:00Z")).name_any().len(), 253);
}
