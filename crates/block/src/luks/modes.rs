//! Modes and ciphers that old images have: ECB, CBC and CTR over any block cipher, a block at a time.
//!
//! Authority: NIST SP 800-38A; RFC 2144 for CAST-128, whose blocks are of 8 bytes.

use std::fmt;

use aes::cipher::array::Array;
use aes::cipher::{Block, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser};

use super::SECTOR;
use super::cipher::VectorCipher;
use crate::SectorCipher;

/// A block cipher of any size of block.
trait OneBlock: Send + Sync {
    fn len(&self) -> usize;
    fn encrypt(&self, block: &mut [u8]);
    fn decrypt(&self, block: &mut [u8]);
}

impl<C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser + Send + Sync> OneBlock for C {
    fn len(&self) -> usize {
        C::block_size()
    }

    fn encrypt(&self, block: &mut [u8]) {
        if let Ok(block) = <&mut Array<u8, C::BlockSize>>::try_from(block) {
            let block: &mut Block<C> = block;
            self.encrypt_block(block);
        }
    }

    fn decrypt(&self, block: &mut [u8]) {
        if let Ok(block) = <&mut Array<u8, C::BlockSize>>::try_from(block) {
            let block: &mut Block<C> = block;
            self.decrypt_block(block);
        }
    }
}

/// How blocks follow each other within a sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chaining {
    Ecb,
    Cbc,
    Ctr,
}

/// A cipher over sectors, a block at a time.
pub(super) struct Blockwise {
    cipher: Box<dyn OneBlock>,
    chaining: Chaining,
    /// Numbers of sectors have 32 bits.
    short: bool,
    essiv: Option<Box<dyn VectorCipher>>,
}

impl fmt::Debug for Blockwise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blockwise({:?})", self.chaining)
    }
}

impl Blockwise {
    /// `short`: the vectors are of numbers of 32 bits.
    pub(super) fn new(
        cipher: impl BlockCipherEncrypt + BlockCipherDecrypt + Send + Sync + 'static,
        chaining: Chaining,
        short: bool,
        essiv: Option<Box<dyn VectorCipher>>,
    ) -> Self {
        Self { cipher: Box::new(cipher), chaining, short, essiv }
    }

    /// The vector of a sector, of a block's length.
    fn vector(&self, sector: u64) -> Vec<u8> {
        let number = if self.short { sector & 0xffff_ffff } else { sector };
        let mut whole = Array(u128::from(number).to_le_bytes());
        if let Some(essiv) = &self.essiv {
            essiv.vector(&mut whole);
        }
        whole[..self.cipher.len()].to_vec()
    }

    fn run(&self, first: u64, data: &mut [u8], encrypt: bool) {
        let len = self.cipher.len();
        let mut sector = first;
        for bytes in data.chunks_exact_mut(SECTOR as usize) {
            let mut vector = self.vector(sector);
            sector = sector.wrapping_add(1);
            for block in bytes.chunks_exact_mut(len) {
                self.block(block, &mut vector, encrypt);
            }
        }
    }

    fn block(&self, block: &mut [u8], vector: &mut [u8], encrypt: bool) {
        match (self.chaining, encrypt) {
            (Chaining::Ecb, true) => self.cipher.encrypt(block),
            (Chaining::Ecb, false) => self.cipher.decrypt(block),
            (Chaining::Cbc, true) => {
                mix(block, vector);
                self.cipher.encrypt(block);
                vector.copy_from_slice(block);
            }
            (Chaining::Cbc, false) => {
                let packed = block.to_vec();
                self.cipher.decrypt(block);
                mix(block, vector);
                vector.copy_from_slice(&packed);
            }
            (Chaining::Ctr, _) => {
                let mut stream = vector.to_vec();
                self.cipher.encrypt(&mut stream);
                mix(block, &stream);
                count_up(vector);
            }
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

impl SectorCipher for Blockwise {
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
