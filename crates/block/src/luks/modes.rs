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

/// A cipher over sectors, a block after the other.
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
            let (blocks, _) = Block::<C>::slice_as_chunks_mut(sector);
            let vector = || {
                let whole = self.vectors.of(first.wrapping_add(index as u64));
                Block::<C>::from_fn(|place| whole[place])
            };
            match (self.chaining, encrypt) {
                (Chaining::Ecb, true) => self.cipher.encrypt_blocks(blocks),
                (Chaining::Ecb, false) => self.cipher.decrypt_blocks(blocks),
                (Chaining::Cbc, true) => self.encrypt_cbc(blocks, vector()),
                (Chaining::Cbc, false) => self.decrypt_cbc(blocks, vector()),
                (Chaining::Ctr, _) => self.ctr(blocks, vector()),
            }
        }
    }
}

impl<C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser> Chained<C> {
    fn encrypt_cbc(&self, blocks: &mut [Block<C>], mut last: Block<C>) {
        for block in blocks {
            mix(block, &last);
            self.cipher.encrypt_block(block);
            last.clone_from(block);
        }
    }

    fn decrypt_cbc(&self, blocks: &mut [Block<C>], mut last: Block<C>) {
        for block in blocks {
            let packed = block.clone();
            self.cipher.decrypt_block(block);
            mix(block, &last);
            last = packed;
        }
    }

    /// The same in both directions.
    fn ctr(&self, blocks: &mut [Block<C>], mut counter: Block<C>) {
        for block in blocks {
            let mut stream = counter.clone();
            self.cipher.encrypt_block(&mut stream);
            mix(block, &stream);
            count_up(&mut counter);
        }
    }
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
