//! Digests of the pages of a chunk. With them a later backup can tell which pages changed, and store only those.
//!
//! A chunk's id is its keyed BLAKE3. In BLAKE3's tree a page of 4 KiB, four leaves of 1 KiB, is a subtree of its own, so its
//! chaining value is a by-product of computing the id. The value depends on the key, the bytes and the offset in the chunk: a
//! digest belongs to one place in one chunk. The first 8 of its 32 bytes are kept. So a changed page is taken for an unchanged
//! one with probability 2^-64, and nobody without the domain's key can look for such a page.
//!
//! `blake3::hazmat` yields the same values, but page by page, four lanes wide, at half the speed (`benches`, `stages`). Here many
//! pages are hashed side by side by `blake3::platform`, which its authors call unstable. So the crate is pinned to one release,
//! and the tests compare with its public functions.

use blake3::hazmat::{self, ChainingValue, Mode};
use blake3::platform::Platform;
use blake3::{CHUNK_LEN, IncrementCounter};

use super::PAGE;
use crate::id::ChunkId;

/// How many bytes of a page's chaining value are kept.
pub const DIGEST_LEN: usize = 8;

/// The digest of one page of a chunk.
pub type PageDigest = [u8; DIGEST_LEN];

const LEAVES: usize = PAGE / CHUNK_LEN;
/// Pages that are hashed side by side: 16 leaves fill the widest vectors.
const TOGETHER: usize = 16;
/// BLAKE3, section 2.2.
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 1 << 1;
const PARENT: u8 = 1 << 2;
const KEYED_HASH: u8 = 1 << 4;

/// Hashes with one key.
pub(crate) struct PageHasher<'a> {
    key: &'a [u8; 32],
    words: [u32; 8],
    platform: Platform,
}

impl<'a> PageHasher<'a> {
    pub(crate) fn new(key: &'a [u8; 32]) -> Self {
        let mut words = [0; 8];
        for (word, bytes) in words.iter_mut().zip(key.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        Self { key, words, platform: Platform::detect() }
    }

    /// The id of a chunk and the digests of its pages.
    pub(crate) fn identify(&self, chunk: &[u8]) -> (ChunkId, Vec<PageDigest>) {
        let mut values = self.values(chunk, 0);
        let digests = values.iter().map(digest).collect();
        let id = if chunk.len() <= PAGE {
            *blake3::keyed_hash(self.key, chunk).as_bytes()
        } else {
            while values.len() > 2 {
                values = self.parents(&values);
            }
            *hazmat::merge_subtrees_root(&values[0], &values[1], Mode::KeyedHash(self.key)).as_bytes()
        };
        (ChunkId::from_bytes(id), digests)
    }

    /// The digests of some pages of a chunk. `bytes` begin at `offset` in the chunk, a multiple of a page. They are whole pages,
    /// unless the chunk ends with them.
    ///
    /// # Panics
    /// If `offset` is not a multiple of a page: the digests would be those of other pages.
    pub(crate) fn digests(&self, bytes: &[u8], offset: u32) -> Vec<PageDigest> {
        assert!((offset as usize).is_multiple_of(PAGE), "a page begins at a multiple of a page");
        self.values(bytes, u64::from(offset)).iter().map(digest).collect()
    }

    /// The chaining values of pages.
    fn values(&self, bytes: &[u8], offset: u64) -> Vec<ChainingValue> {
        use hazmat::HasherExt;
        let (pages, rest) = bytes.as_chunks::<PAGE>();
        let mut values = Vec::with_capacity(pages.len() + 1);
        let mut counter = offset / CHUNK_LEN as u64;
        for group in pages.chunks(TOGETHER) {
            let (leaves, _) = group.as_flattened().as_chunks::<CHUNK_LEN>();
            let mut inputs: [&[u8; CHUNK_LEN]; TOGETHER * LEAVES] = [&[0; CHUNK_LEN]; TOGETHER * LEAVES];
            inputs.iter_mut().zip(leaves).for_each(|(input, leaf)| *input = leaf);
            let mut out = [0; TOGETHER * LEAVES * 32];
            self.platform.hash_many(
                &inputs[..leaves.len()],
                &self.words,
                counter,
                IncrementCounter::Yes,
                KEYED_HASH,
                CHUNK_START,
                CHUNK_END,
                &mut out,
            );
            counter += leaves.len() as u64;
            let (leaves, _) = out[..leaves.len() * 32].as_chunks::<32>();
            values.extend(self.parents(&self.parents(leaves)));
        }
        if !rest.is_empty() {
            let mut hasher = blake3::Hasher::new_keyed(self.key);
            hasher.set_input_offset(counter * CHUNK_LEN as u64).update(rest);
            values.push(hasher.finalize_non_root());
        }
        values
    }

    /// The next level up. An odd value at the end stays as it is, as in BLAKE3's tree.
    fn parents(&self, children: &[ChainingValue]) -> Vec<ChainingValue> {
        let (pairs, odd) = children.as_chunks::<2>();
        let mut parents = Vec::with_capacity(pairs.len() + 1);
        for pairs in pairs.chunks(TOGETHER * LEAVES / 2) {
            let blocks = pairs.as_flattened().as_flattened().as_chunks::<64>().0;
            let mut inputs: [&[u8; 64]; TOGETHER * LEAVES / 2] = [&[0; 64]; TOGETHER * LEAVES / 2];
            inputs.iter_mut().zip(blocks).for_each(|(input, block)| *input = block);
            let mut out = [0; TOGETHER * LEAVES / 2 * 32];
            let flags = KEYED_HASH | PARENT;
            self.platform.hash_many(
                &inputs[..blocks.len()],
                &self.words,
                0,
                IncrementCounter::No,
                flags,
                0,
                0,
                &mut out,
            );
            parents.extend_from_slice(out[..blocks.len() * 32].as_chunks::<32>().0);
        }
        parents.extend_from_slice(odd);
        parents
    }
}

fn digest(value: &ChainingValue) -> PageDigest {
    let mut digest = [0; DIGEST_LEN];
    digest.copy_from_slice(&value[..DIGEST_LEN]);
    digest
}

#[cfg(test)]
mod tests {
    use blake3::hazmat::HasherExt;
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    /// Computed with the public functions alone.
    fn plainly(chunk: &[u8]) -> (ChunkId, Vec<PageDigest>) {
        let pages = chunk.chunks(PAGE).enumerate().map(|(n, page)| {
            let mut hasher = blake3::Hasher::new_keyed(&KEY);
            hasher.set_input_offset((n * PAGE) as u64).update(page);
            digest(&hasher.finalize_non_root())
        });
        (ChunkId::from_bytes(*blake3::keyed_hash(&KEY, chunk).as_bytes()), pages.collect())
    }

    #[test]
    fn ids_and_digests_are_those_of_blake3() {
        let bytes = noise(140 * PAGE);
        for len in
            (1..=140).map(|n| n * PAGE).chain([1, 1024, 1025, PAGE - 1, PAGE + 1, 3 * PAGE + 1024, 129 * PAGE + 7])
        {
            assert_eq!(PageHasher::new(&KEY).identify(&bytes[..len]), plainly(&bytes[..len]), "{len}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_part_of_a_chunk_has_the_digests_that_the_whole_has(len in 1..100 * PAGE, from in 0usize..100, pages in 1usize..100) {
            let chunk = noise(len);
            let hasher = PageHasher::new(&KEY);
            let (_, all) = hasher.identify(&chunk);
            let from = from % all.len();
            let end = (from + pages).min(all.len());
            let part = &chunk[from * PAGE..(end * PAGE).min(len)];
            prop_assert_eq!(hasher.digests(part, u32::try_from(from * PAGE).unwrap()), &all[from..end]);
        }
    }
}
