//! Modes over sectors in which a block is chained to the one before, or to none: ECB, CBC and CTR, over any block cipher.
//!
//! Authority: NIST SP 800-38A; RFC 2144 for CAST-128, whose blocks are of 8 bytes.

use std::fmt;

use aes::cipher::{Block, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser};

use super::SECTOR;
use super::cipher::Vectors;
use crate::SectorCipher;

/// A mode with its keys.
pub(super) trait Keyed: fmt::Debug + Send + Sync {
    /// Encrypts or decrypts whole sectors, the first of which has the number `first`.
    fn run(&self, first: u64, data: &mut [u8], encrypt: bool);
}

impl<K: Keyed> SectorCipher for K {
    fn sector_size(&self) -> u64 {
        SECTOR
    }

    fn encrypt(&self, sector: u64, data: &mut [u8]) {
        self.run(sector, data, true);
    }

    fn decrypt(&self, sector: u64, data: &mut [u8]) {
        self.run(sector, data, false);
    }
}

/// How blocks follow each other within a sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chaining {
    Ecb,
    Cbc,
    Ctr,
}

/// A cipher over sectors in such a mode.
pub(super) struct Chained<C> {
    pub cipher: C,
    pub chaining: Chaining,
    pub vectors: Vectors,
}

impl<C> fmt::Debug for Chained<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chained({:?})", self.chaining)
    }
}

impl<C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser + Send + Sync> Keyed for Chained<C> {
    fn run(&self, first: u64, data: &mut [u8], encrypt: bool) {
        for (index, sector) in data.chunks_exact_mut(SECTOR as usize).enumerate() {
            let vector = || {
                let whole = self.vectors.of(first.wrapping_add(index as u64));
                Block::<C>::from_fn(|place| whole[place])
            };
            match (self.chaining, encrypt) {
                (Chaining::Ecb, true) => self.cipher.encrypt_blocks(blocks::<C>(sector)),
                (Chaining::Ecb, false) => self.cipher.decrypt_blocks(blocks::<C>(sector)),
                (Chaining::Cbc, true) => self.encrypt_cbc(sector, vector()),
                (Chaining::Cbc, false) => self.decrypt_cbc(sector, &vector()),
                (Chaining::Ctr, _) => self.ctr(sector, vector()),
            }
        }
    }
}

// Where blocks do not wait for each other a sector goes through the cipher as a whole: processors do many at once.
impl<C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser> Chained<C> {
    fn encrypt_cbc(&self, sector: &mut [u8], mut last: Block<C>) {
        for block in blocks::<C>(sector) {
            mix(block, &last);
            self.cipher.encrypt_block(block);
            last.clone_from(block);
        }
    }

    fn decrypt_cbc(&self, sector: &mut [u8], vector: &[u8]) {
        let mut packed = [0; SECTOR as usize];
        packed.copy_from_slice(sector);
        self.cipher.decrypt_blocks(blocks::<C>(sector));
        let (first, rest) = sector.split_at_mut(vector.len());
        mix(first, vector);
        mix(rest, &packed);
    }

    /// The same in both directions.
    fn ctr(&self, sector: &mut [u8], mut counter: Block<C>) {
        let mut stream = [0; SECTOR as usize];
        for block in blocks::<C>(&mut stream) {
            block.clone_from(&counter);
            count_up(&mut counter);
        }
        self.cipher.encrypt_blocks(blocks::<C>(&mut stream));
        mix(sector, &stream);
    }
}

fn blocks<C: BlockSizeUser>(sector: &mut [u8]) -> &mut [Block<C>] {
    Block::<C>::slice_as_chunks_mut(sector).0
}

fn mix(block: &mut [u8], other: &[u8]) {
    block.iter_mut().zip(other).for_each(|(byte, other)| *byte ^= other);
}

/// Adds one to a number of big-endian bytes.
fn count_up(number: &mut [u8]) {
    for byte in number.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return;
        }
    }
}
