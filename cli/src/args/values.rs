//! Values of arguments that have a form of their own.

use milkrun_repository::chunk::codec;
use milkrun_repository::clock::Moment;
use milkrun_repository::id::VolumeName;

/// `NAME=PATH`
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) name: VolumeName,
    pub(crate) path: String,
}

pub(super) fn named(text: &str) -> Result<Named, String> {
    let (name, path) = text.split_once('=').ok_or("write NAME=PATH")?;
    if path.is_empty() {
        return Err("the path is missing; write NAME=PATH".into());
    }
    Ok(Named { name: name.parse().map_err(|e: milkrun_repository::id::NameError| e.to_string())?, path: path.into() })
}

/// `NAME=TIME`
#[derive(Clone, Debug)]
pub(crate) struct TakenAt {
    pub(crate) name: VolumeName,
    pub(crate) moment: Moment,
}

pub(super) fn taken(text: &str) -> Result<TakenAt, String> {
    let Named { name, path } = named(text).map_err(|e| e.replace("PATH", "TIME"))?;
    let moment =
        Moment::parse(&path).map_err(|_| format!("{path:?} is no time: write it like 2026-11-22T14:30:00Z"))?;
    Ok(TakenAt { name, moment })
}

/// How hard to compress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Level {
    pub(crate) from: i32,
    /// Harder where that costs no time.
    pub(crate) adapts: bool,
}

pub(super) fn level(text: &str) -> Result<Level, String> {
    let default = codec::Level::DEFAULT.get();
    if text == "auto" {
        return Ok(Level { from: default, adapts: true });
    }
    let number = text.parse().map_err(|_| "write a number from -7 to 19, or auto".to_owned())?;
    codec::Level::new(number).map_err(|e| e.to_string())?;
    Ok(Level { from: number, adapts: false })
}
