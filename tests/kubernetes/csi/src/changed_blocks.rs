//! Lists of allocated and of changed blocks, made by comparing content: they are right, whatever the file system says of
//! its extents. The switches make them wrong.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::csi::snapshot_metadata_server::SnapshotMetadata;
use crate::csi::{
    BlockMetadata, BlockMetadataType, GetMetadataAllocatedRequest, GetMetadataAllocatedResponse,
    GetMetadataDeltaRequest, GetMetadataDeltaResponse,
};
use crate::server::Driver;
use crate::switches::{ChangedBlocks, Switches};

/// Bytes that are compared at once. Ranges are multiples of it.
const BLOCK: usize = 64 << 10;
/// Ranges of a message, where nobody named a number.
const RANGES: usize = 256;
const LATE: Duration = Duration::from_secs(2);

/// Which part of a list is wanted.
struct Part {
    from: i64,
    /// Ranges of a message at most, 0 for any.
    max: i32,
}

/// Ranges of `target` that differ from `base`, or from zeros.
fn differing(target: &Path, base: Option<&Path>, bytes: i64, from: i64) -> Result<Vec<BlockMetadata>, Status> {
    let failed = |e: std::io::Error| Status::internal(e.to_string());
    let target = File::open(target).map_err(failed)?;
    let base = base.map(File::open).transpose().map_err(failed)?;
    let (mut new, mut old) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut ranges: Vec<BlockMetadata> = Vec::new();
    let mut at = from - from % i64::try_from(BLOCK).unwrap_or(1);
    while at < bytes {
        let offset = u64::try_from(at).unwrap_or_default();
        let length = read(&target, &mut new, offset).map_err(failed)?;
        old.fill(0);
        if let Some(base) = &base {
            read(base, &mut old, offset).map_err(failed)?;
        }
        let size = i64::try_from(length).unwrap_or_default();
        if new[..length] != old[..length] {
            match ranges.last_mut() {
                Some(last) if last.byte_offset + last.size_bytes == at => last.size_bytes += size,
                _ => ranges.push(BlockMetadata { byte_offset: at, size_bytes: size }),
            }
        }
        if length < BLOCK {
            break;
        }
        at += size;
    }
    Ok(ranges)
}

/// Reads until the block is full or the file ends.
fn read(file: &File, block: &mut [u8], at: u64) -> std::io::Result<usize> {
    let mut done = 0;
    while done < block.len() {
        match file.read_at(&mut block[done..], at + done as u64)? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

type Sender<T> = mpsc::Sender<Result<T, Status>>;

/// Sends ranges message by message, as badly as the switch says.
async fn send<T>(
    mut ranges: Vec<BlockMetadata>,
    max: usize,
    how: ChangedBlocks,
    to: Sender<T>,
    make: fn(Vec<BlockMetadata>, i64) -> T,
    bytes: i64,
) {
    match how {
        ChangedBlocks::Empty => return,
        ChangedBlocks::Wrong => drop(ranges.pop()),
        _ => {}
    }
    for (number, part) in ranges.chunks(max).enumerate() {
        if how == ChangedBlocks::Late {
            tokio::time::sleep(LATE).await;
        }
        if how == ChangedBlocks::BrokenOff && number > 0 {
            break;
        }
        if to.send(Ok(make(part.to_vec(), bytes))).await.is_err() {
            return;
        }
    }
    if how == ChangedBlocks::BrokenOff {
        // Whoever asked may be gone.
        let _ = to.send(Err(Status::deadline_exceeded("the list was broken off"))).await;
    }
}

impl Driver {
    fn list<T: Send + 'static>(
        &self,
        target: &str,
        base: Option<&str>,
        part: &Part,
        make: fn(Vec<BlockMetadata>, i64) -> T,
    ) -> Result<ReceiverStream<Result<T, Status>>, Status> {
        if target.is_empty() || base.is_some_and(str::is_empty) {
            return Err(Status::invalid_argument("no snapshot is named"));
        }
        let bytes = self.state.snapshot(target)?.bytes;
        let base = base.map(|id| self.state.snapshot(id)).transpose()?.map(|base| self.state.snapshot_image(&base.id));
        if part.from < 0 || part.from > bytes {
            return Err(Status::out_of_range(format!("{} is beyond {bytes} bytes", part.from)));
        }
        let how = Switches::read(self.state.disk())?.changed_blocks;
        let ranges = differing(&self.state.snapshot_image(target), base.as_deref(), bytes, part.from)?;
        let max = usize::try_from(part.max).map_err(|_| Status::invalid_argument("max_results is negative"))?;
        let (to, messages) = mpsc::channel(1);
        tokio::spawn(send(ranges, if max == 0 { RANGES } else { max }, how, to, make, bytes));
        Ok(ReceiverStream::new(messages))
    }
}

#[tonic::async_trait]
impl SnapshotMetadata for Driver {
    type GetMetadataAllocatedStream = ReceiverStream<Result<GetMetadataAllocatedResponse, Status>>;
    type GetMetadataDeltaStream = ReceiverStream<Result<GetMetadataDeltaResponse, Status>>;

    async fn get_metadata_allocated(
        &self,
        request: Request<GetMetadataAllocatedRequest>,
    ) -> Result<Response<Self::GetMetadataAllocatedStream>, Status> {
        let asked = request.into_inner();
        let part = Part { from: asked.starting_offset, max: asked.max_results };
        let make = |block_metadata, volume_capacity_bytes| GetMetadataAllocatedResponse {
            block_metadata_type: BlockMetadataType::VariableLength.into(),
            volume_capacity_bytes,
            block_metadata,
        };
        Ok(Response::new(self.list(&asked.snapshot_id, None, &part, make)?))
    }

    async fn get_metadata_delta(
        &self,
        request: Request<GetMetadataDeltaRequest>,
    ) -> Result<Response<Self::GetMetadataDeltaStream>, Status> {
        let asked = request.into_inner();
        let part = Part { from: asked.starting_offset, max: asked.max_results };
        let make = |block_metadata, volume_capacity_bytes| GetMetadataDeltaResponse {
            block_metadata_type: BlockMetadataType::VariableLength.into(),
            volume_capacity_bytes,
            block_metadata,
        };
        Ok(Response::new(self.list(&asked.target_snapshot_id, Some(&asked.base_snapshot_id), &part, make)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_blocks_are_one_range() {
        let folder = std::env::temp_dir().join(format!("milkrun-csi-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (old, new) = (folder.join("old"), folder.join("new"));
        std::fs::write(&old, vec![0; 8 * BLOCK]).unwrap();
        let mut bytes = vec![0; 8 * BLOCK];
        bytes[BLOCK] = 1;
        bytes[3 * BLOCK - 1] = 1;
        bytes[7 * BLOCK] = 1;
        std::fs::write(&new, &bytes).unwrap();
        let size = i64::try_from(bytes.len()).unwrap();
        let found = differing(&new, Some(&old), size, 0).unwrap();
        let block = i64::try_from(BLOCK).unwrap();
        let expected = [(block, 2 * block), (7 * block, block)];
        let expected: Vec<BlockMetadata> =
            expected.map(|(byte_offset, size_bytes)| BlockMetadata { byte_offset, size_bytes }).into();
        assert_eq!(found, expected);
        assert_eq!(differing(&new, None, size, 4 * block).unwrap().len(), 1);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
