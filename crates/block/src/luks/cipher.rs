//! Ciphers over sectors: XTS (IEEE 1619) and CBC, with the ways to number sectors that LUKS names.

use std::fmt;
use std::sync::Arc;

use aes::cipher::array::Array;
use aes::cipher::consts::U16;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit};

use super::SECTOR;
use super::hash::Hash;
use super::modes::{Blockwise, Chaining};
use crate::{Error, Result, SectorCipher};

pub(super) type Block = Array<u8, U16>;
const BLOCK: usize = 16;
const SECTOR_LEN: usize = SECTOR as usize;

/// A block cipher with its key length, in QEMU's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Aes128,
    Aes192,
    Aes256,
    Serpent128,
    Serpent192,
    Serpent256,
    Twofish128,
    Twofish192,
    Twofish256,
    Cast5,
}

const ALGORITHMS: [(Algorithm, &str, &str, usize); 10] = [
    (Algorithm::Aes128, "aes-128", "aes", 16),
    (Algorithm::Aes192, "aes-192", "aes", 24),
    (Algorithm::Aes256, "aes-256", "aes", 32),
    (Algorithm::Serpent128, "serpent-128", "serpent", 16),
    (Algorithm::Serpent192, "serpent-192", "serpent", 24),
    (Algorithm::Serpent256, "serpent-256", "serpent", 32),
    (Algorithm::Twofish128, "twofish-128", "twofish", 16),
    (Algorithm::Twofish192, "twofish-192", "twofish", 24),
    (Algorithm::Twofish256, "twofish-256", "twofish", 32),
    (Algorithm::Cast5, "cast5-128", "cast5", 16),
];

impl Algorithm {
    fn row(self) -> (Algorithm, &'static str, &'static str, usize) {
        ALGORITHMS.into_iter().find(|row| row.0 == self).unwrap_or(ALGORITHMS[0])
    }

    /// From LUKS's name and the length of the key.
    pub(super) fn parse(luks: &str, key_bytes: u32, mode: Mode) -> Result<Self> {
        let len = key_bytes as usize / if mode == Mode::Xts { 2 } else { 1 };
        let found = ALGORITHMS.into_iter().find(|row| row.2 == luks && row.3 == len);
        found.map(|row| row.0).ok_or_else(|| {
            Error::Unsupported(format!(
                "LUKS cipher '{luks}' with a key of {key_bytes} bytes; known are aes, serpent, twofish and cast5"
            ))
        })
    }

    /// From QEMU's name.
    pub(super) fn by_name(name: &str) -> Result<Self> {
        let found = ALGORITHMS.into_iter().find(|row| row.1 == name);
        found
            .map(|row| row.0)
            .ok_or_else(|| Error::option(format!("Invalid parameter '{name}' for cipher-alg")))
    }

    pub(super) fn name(self) -> &'static str {
        self.row().1
    }

    pub(super) fn luks_name(self) -> &'static str {
        self.row().2
    }

    pub(super) fn key_len(self) -> usize {
        self.row().3
    }
}

/// How blocks of a sector are chained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Xts,
    Cbc,
    Ctr,
    Ecb,
}

impl Mode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Xts => "xts",
            Self::Cbc => "cbc",
            Self::Ctr => "ctr",
            Self::Ecb => "ecb",
        }
    }
}

/// How a sector's number becomes an initialization vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Iv {
    Plain,
    Plain64,
    Essiv(Hash),
}

impl Iv {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Plain64 => "plain64",
            Self::Essiv(_) => "essiv",
        }
    }

    pub(super) fn hash(self) -> Option<Hash> {
        if let Self::Essiv(hash) = self { Some(hash) } else { None }
    }
}

/// LUKS's words for mode and vector: `xts-plain64`, `cbc-essiv:sha256`.
pub(super) fn parse_mode(text: &str) -> Result<(Mode, Iv)> {
    let unknown = || Error::Unsupported(format!("LUKS cipher mode '{text}'"));
    let (mode, iv) = text.split_once('-').ok_or_else(unknown)?;
    let mode = match mode {
        "xts" => Mode::Xts,
        "cbc" => Mode::Cbc,
        "ctr" => Mode::Ctr,
        "ecb" => Mode::Ecb,
        _ => return Err(unknown()),
    };
    let iv = match iv.split_once(':') {
        None if iv == "plain" => Iv::Plain,
        None if iv == "plain64" => Iv::Plain64,
        Some(("essiv", hash)) => Iv::Essiv(Hash::parse(hash)?),
        _ => return Err(unknown()),
    };
    Ok((mode, iv))
}

trait BlockCipher:
    BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + Send + Sync + 'static
{
}
impl<C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + Send + Sync + 'static>
    BlockCipher for C
{
}

/// The number of a sector as a vector.
fn number(iv: Iv, sector: u64) -> Block {
    let value = if iv == Iv::Plain { u128::from(sector as u32) } else { u128::from(sector) };
    Array(value.to_le_bytes())
}

/// XTS: one key for the data, one for the numbers of sectors.
struct Xts<C> {
    data: C,
    tweak: C,
    iv: Iv,
    essiv: Option<Box<dyn VectorCipher>>,
}

/// Encrypts numbers of sectors.
pub(super) trait VectorCipher: Send + Sync {
    fn vector(&self, block: &mut Block);
}

impl<C: BlockCipher> VectorCipher for C {
    fn vector(&self, block: &mut Block) {
        self.encrypt_block(block);
    }
}

fn vector(iv: Iv, essiv: Option<&dyn VectorCipher>, sector: u64) -> Block {
    let mut block = number(iv, sector);
    if let Some(cipher) = essiv {
        cipher.vector(&mut block);
    }
    block
}

/// Sectors that go through the cipher together: processors do up to 64 blocks at once, and a sector has 32.
const BATCH: usize = 8;
const SECTOR_BLOCKS: usize = SECTOR_LEN / BLOCK;

impl<C: BlockCipher> Xts<C> {
    fn run(&self, first: u64, data: &mut [u8], encrypt: bool) {
        let mut sector = first;
        let mut tweaks = [0u128; SECTOR_BLOCKS * BATCH];
        for sectors in data.chunks_mut(SECTOR_LEN * BATCH) {
            let count = sectors.len().div_ceil(SECTOR_LEN);
            let mut starts = [Block::default(); BATCH];
            for start in &mut starts[..count] {
                *start = vector(self.iv, self.essiv.as_deref(), sector);
                sector = sector.wrapping_add(1);
            }
            self.tweak.encrypt_blocks(&mut starts[..count]);
            for (places, start) in tweaks.chunks_exact_mut(SECTOR_BLOCKS).zip(&starts[..count]) {
                let mut tweak = u128::from_le_bytes(start.0);
                for place in places {
                    *place = tweak;
                    // Multiplication by x in GF(2^128).
                    tweak = (tweak << 1) ^ ((tweak >> 127) * 0x87);
                }
            }
            mask(sectors, &tweaks);
            let (blocks, _) = Block::slice_as_chunks_mut(sectors);
            match encrypt {
                true => self.data.encrypt_blocks(blocks),
                false => self.data.decrypt_blocks(blocks),
            }
            mask(sectors, &tweaks);
        }
    }
}

fn mask(bytes: &mut [u8], tweaks: &[u128]) {
    for (block, tweak) in bytes.as_chunks_mut::<BLOCK>().0.iter_mut().zip(tweaks) {
        *block = (u128::from_le_bytes(*block) ^ tweak).to_le_bytes();
    }
}

/// CBC within a sector.
struct Cbc<C> {
    data: C,
    iv: Iv,
    essiv: Option<Box<dyn VectorCipher>>,
}

impl<C: BlockCipher> Cbc<C> {
    fn run(&self, first: u64, data: &mut [u8], encrypt: bool) {
        for (index, bytes) in data.chunks_exact_mut(SECTOR_LEN).enumerate() {
            let sector = first.wrapping_add(index as u64);
            let mut last = u128::from_le_bytes(vector(self.iv, self.essiv.as_deref(), sector).0);
            for block in bytes.chunks_exact_mut(BLOCK) {
                let plain = u128::from_le_bytes((&*block).try_into().unwrap_or_default());
                let mut value = Array(if encrypt { plain ^ last } else { plain }.to_le_bytes());
                if encrypt {
                    self.data.encrypt_block(&mut value);
                    last = u128::from_le_bytes(value.0);
                } else {
                    self.data.decrypt_block(&mut value);
                    value = Array((u128::from_le_bytes(value.0) ^ last).to_le_bytes());
                    last = plain;
                }
                block.copy_from_slice(&value);
            }
        }
    }
}

impl<C> fmt::Debug for Xts<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Xts")
    }
}

impl<C> fmt::Debug for Cbc<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cbc")
    }
}

impl<C: BlockCipher> SectorCipher for Xts<C> {
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

impl<C: BlockCipher> SectorCipher for Cbc<C> {
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

/// CAST-128, whose blocks are too short for XTS.
fn cast5(mode: Mode, iv: Iv, key: &[u8]) -> Result<Arc<dyn SectorCipher>> {
    essiv(Algorithm::Cast5, iv, key)?;
    let chaining = match mode {
        Mode::Xts => return Err(Error::Unsupported("Unsupported cipher mode xts".to_owned())),
        Mode::Cbc => Chaining::Cbc,
        Mode::Ctr => Chaining::Ctr,
        Mode::Ecb => Chaining::Ecb,
    };
    let cipher =
        cast5::Cast5::new_from_slice(key).map_err(|_| Error::corrupt("a key of the wrong length"))?;
    Ok(Arc::new(Blockwise::new(cipher, chaining, iv == Iv::Plain, None)))
}

fn keyed<C: BlockCipher + KeyInit>(key: &[u8]) -> Result<C> {
    C::new_from_slice(key).map_err(|_| Error::corrupt("a key of the wrong length"))
}

/// The cipher that turns sector numbers into vectors, keyed with a hash of the key: of the data's algorithm, with a key
/// as long as the hash.
fn essiv(algorithm: Algorithm, iv: Iv, key: &[u8]) -> Result<Option<Box<dyn VectorCipher>>> {
    let Iv::Essiv(hash) = iv else { return Ok(None) };
    let salt = hash.digest(&[key]);
    let name = algorithm.luks_name();
    Ok(Some(match (name, salt.len()) {
        ("aes", 16) => Box::new(keyed::<aes::Aes128>(&salt)?),
        ("aes", 32) => Box::new(keyed::<aes::Aes256>(&salt)?),
        ("serpent", 16 | 32) => Box::new(keyed::<serpent::Serpent>(&salt)?),
        ("twofish", 16 | 32) => Box::new(keyed::<twofish::Twofish>(&salt)?),
        ("cast5", _) => {
            return Err(Error::Unsupported(format!("Cipher {} not supported with essiv", algorithm.name())));
        }
        (name, len) => {
            let name = match name {
                "aes" => "AES",
                "serpent" => "Serpent",
                _ => "Twofish",
            };
            return Err(Error::Unsupported(format!("No {name} cipher with key size {len} available")));
        }
    }))
}

fn with<C: BlockCipher + KeyInit>(
    algorithm: Algorithm,
    mode: Mode,
    iv: Iv,
    key: &[u8],
) -> Result<Arc<dyn SectorCipher>> {
    let essiv = essiv(algorithm, iv, key)?;
    Ok(match mode {
        Mode::Xts => {
            let (data, tweak) = key.split_at(key.len() / 2);
            Arc::new(Xts { data: keyed::<C>(data)?, tweak: keyed::<C>(tweak)?, iv, essiv })
        }
        Mode::Cbc => Arc::new(Cbc { data: keyed::<C>(key)?, iv, essiv }),
        Mode::Ctr => Arc::new(Blockwise::new(keyed::<C>(key)?, Chaining::Ctr, iv == Iv::Plain, essiv)),
        Mode::Ecb => Arc::new(Blockwise::new(keyed::<C>(key)?, Chaining::Ecb, iv == Iv::Plain, None)),
    })
}

/// A cipher of the kind, with a key.
pub(super) fn new(algorithm: Algorithm, mode: Mode, iv: Iv, key: &[u8]) -> Result<Arc<dyn SectorCipher>> {
    match algorithm {
        Algorithm::Aes128 => with::<aes::Aes128>(algorithm, mode, iv, key),
        Algorithm::Aes192 => with::<aes::Aes192>(algorithm, mode, iv, key),
        Algorithm::Aes256 => with::<aes::Aes256>(algorithm, mode, iv, key),
        Algorithm::Serpent128 | Algorithm::Serpent192 | Algorithm::Serpent256 => {
            with::<serpent::Serpent>(algorithm, mode, iv, key)
        }
        Algorithm::Twofish128 | Algorithm::Twofish192 | Algorithm::Twofish256 => {
            with::<twofish::Twofish>(algorithm, mode, iv, key)
        }
        Algorithm::Cast5 => cast5(mode, iv, key),
    }
}

/// The legacy scheme of qcow2: AES-128 in CBC, keyed with the first 16 bytes of the password, sectors numbered plainly.
pub(crate) fn legacy_cipher(password: &[u8]) -> Result<Arc<dyn SectorCipher>> {
    let mut key = [0; 16];
    let len = password.len().min(16);
    key[..len].copy_from_slice(&password[..len]);
    with::<aes::Aes128>(Algorithm::Aes128, Mode::Cbc, Iv::Plain64, &key)
}
