//! `leases/<run>`: a run is under way. The lease gives the key of the run's root, so that a new leader or the collector can end
//! the run by a tombstone at that key. Sealed in an [envelope](crate::keys::envelope); not locked.

use crate::clock::Moment;
use crate::id::{AppHash, RunId};
use crate::point::root::Root;
use crate::wire::{Decoder, Encoder, Malformed};

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The run.
    pub run: RunId,
    /// The epoch of the leader that began the run. A leader that takes the run over says so in the run's journal.
    pub epoch: u64,
    /// The application.
    pub app: AppHash,
    /// The moment of the snapshot. Together with run and application it gives the root's key.
    pub moment: Moment,
    /// The host that holds it, for people.
    pub host: String,
}

impl Lease {
    /// The lease of the run that will make `root`, under a leader of that epoch.
    pub fn of(root: &Root, epoch: u64, host: &str) -> Self {
        Self { run: root.run, epoch, app: root.app, moment: root.moment, host: host.to_owned() }
    }

    /// The body's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new();
        e.raw(self.run.as_bytes()).u64(self.epoch).raw(self.app.as_bytes()).i64(self.moment.millis()).text(&self.host);
        e.finish()
    }

    /// Parses a body.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let mut d = Decoder::new(body);
        let lease = Self {
            run: RunId::from_bytes(d.array("run")?),
            epoch: d.u64("epoch")?,
            app: AppHash::from_bytes(d.array("application")?),
            moment: Moment::from_millis(d.i64("moment")?),
            host: d.text("host")?,
        };
        d.finish("end of lease")?;
        Ok(lease)
    }
}
