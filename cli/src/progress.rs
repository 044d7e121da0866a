//! Progress: a bar for each volume on a terminal, else a plain line now and then.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use milkrun_proto::control::v1::VolumeProgress;

use crate::output::note;
use crate::units;

/// How often a plain line is printed.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows progress on standard error.
pub(crate) struct Progress {
    bars: Option<MultiProgress>,
    quiet: bool,
    volumes: BTreeMap<String, Volume>,
}

struct Volume {
    bar: Option<ProgressBar>,
    began: Instant,
    last_line: Instant,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        let bars = (!quiet && std::io::stderr().is_terminal()).then(MultiProgress::new);
        Self { bars, quiet, volumes: BTreeMap::new() }
    }

    pub(crate) fn update(&mut self, p: &VolumeProgress) {
        if self.quiet {
            return;
        }
        let bars = &self.bars;
        let volume = self.volumes.entry(p.volume.clone()).or_insert_with(|| {
            let bar = bars.as_ref().map(|b| b.add(bar(p)));
            Volume { bar, began: Instant::now(), last_line: Instant::now() }
        });
        match &volume.bar {
            Some(bar) => {
                if bar.length() != Some(p.total_bytes) {
                    // The first report of a volume may come before its size is known.
                    bar.set_style(style(p));
                    bar.set_length(p.total_bytes);
                }
                bar.set_position(p.done_bytes);
            }
            None if volume.last_line.elapsed() >= LINE_EVERY => {
                volume.last_line = Instant::now();
                note(&line(p, volume.began.elapsed()));
            }
            None => {}
        }
    }

    pub(crate) fn finish(&mut self) {
        for volume in self.volumes.values() {
            if let Some(bar) = &volume.bar {
                bar.finish_and_clear();
            }
        }
    }
}

fn style(p: &VolumeProgress) -> ProgressStyle {
    let known = "{prefix:>12} [{bar:30}] {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
    let stream = "{prefix:>12} {spinner} {bytes}  {bytes_per_sec}";
    let template = if p.total_bytes > 0 { known } else { stream };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn bar(p: &VolumeProgress) -> ProgressBar {
    let bar = ProgressBar::new(p.total_bytes).with_style(style(p));
    bar.set_prefix(p.volume.clone());
    bar
}

fn line(p: &VolumeProgress, took: Duration) -> String {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "for people"
    )]
    let rate = (p.done_bytes as f64 / took.as_secs_f64().max(0.001)) as u64;
    let left = match (p.total_bytes.checked_sub(p.done_bytes), rate) {
        (Some(left), 1..) if p.total_bytes > 0 => format!(", {} left", units::time(Duration::from_secs(left / rate))),
        _ => String::new(),
    };
    let of = if p.total_bytes > 0 { format!(" of {}", units::bytes(p.total_bytes)) } else { String::new() };
    format!("{}: {}{of}, {}/s{left}", p.volume, units::bytes(p.done_bytes), units::bytes(rate))
}
