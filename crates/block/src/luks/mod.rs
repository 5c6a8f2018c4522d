//! LUKS version 1: a header with key slots, and data in encrypted sectors.
//!
//! The master key encrypts the data; each key slot holds it, spread over many stripes and encrypted with a key that a
//! passphrase gives. qcow2 keeps such a header in clusters of its own; as a format of its own, LUKS is the header with
//! the data behind it.
//!
//! Authority: "LUKS On-Disk Format Specification", version 1.2.3.

mod cipher;
mod format;
mod hash;
mod modes;
mod secret;
mod slots;

pub use format::LuksDriver;
pub use secret::open_secret;

pub(crate) use cipher::legacy_cipher;
pub(crate) use slots::format_header;

use std::sync::Arc;

use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};
use zeroize::Zeroizing;

use crate::{Error, InfoValue, Result, SectorCipher, Storage, StorageExt};
use cipher::{Algorithm, Iv, Mode};
use hash::Hash;

const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
const ACTIVE: u32 = 0x00ac_71f3;
const INACTIVE: u32 = 0x0000_dead;
pub(crate) const SECTOR: u64 = 512;
const SLOTS: usize = 8;
const STRIPES: u32 = 4000;
/// Limits on what a header may ask for: two keys of 256 bits, and PBKDF2 rounds that take minutes.
const KEY_BYTES_MAX: u32 = 64;
const STRIPES_MAX: u32 = 8192;
const ITERATIONS_MAX: u32 = 1 << 30;
/// Bytes of the header with all key slots, as we and QEMU make them for a key of 64 bytes.
pub(crate) const HEADER_BYTES: u64 = 2_068_480;

/// A key slot as it lies in the file.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Slot {
    active: U32,
    iterations: U32,
    salt: [u8; 32],
    material_sector: U32,
    stripes: U32,
}

/// The header as it lies in the file.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Raw {
    magic: [u8; 6],
    version: U16,
    cipher_name: [u8; 32],
    cipher_mode: [u8; 32],
    hash: [u8; 32],
    payload_sector: U32,
    key_bytes: U32,
    digest: [u8; 20],
    digest_salt: [u8; 32],
    digest_iterations: U32,
    uuid: [u8; 40],
    slots: [Slot; SLOTS],
}

/// A header, judged.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    raw: Raw,
    algorithm: Algorithm,
    mode: Mode,
    iv: Iv,
    hash: Hash,
}

/// A master key, wiped when it is dropped.
pub(crate) struct Key(Zeroizing<Vec<u8>>);

impl Key {
    /// One of `len` bytes, to be filled.
    fn empty(len: usize) -> Self {
        Self(Zeroizing::new(vec![0; len]))
    }
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

impl Header {
    /// Reads the header at `offset`; it and its key slots take at most `len` bytes, which is told where data does not
    /// follow them.
    pub(crate) fn read(storage: &dyn Storage, offset: u64, len: Option<u64>) -> Result<Self> {
        let mut raw = Raw::new_zeroed();
        storage.read_at(offset, raw.as_mut_bytes())?;
        if raw.magic != MAGIC {
            return Err(Error::corrupt("the LUKS header does not begin with its magic number"));
        }
        if raw.version.get() != 1 {
            return Err(Error::Unsupported(format!(
                "LUKS version {}; version 1 is known",
                raw.version.get()
            )));
        }
        let (mode, iv) = cipher::parse_mode(&text(&raw.cipher_mode))?;
        let algorithm = Algorithm::parse(&text(&raw.cipher_name), raw.key_bytes.get(), mode)?;
        let header = Self { algorithm, mode, iv, hash: Hash::parse(&text(&raw.hash))?, raw };
        header.judge(len)?;
        Ok(header)
    }

    fn judge(&self, len: Option<u64>) -> Result<()> {
        let key_bytes = self.raw.key_bytes.get();
        if key_bytes == 0 || key_bytes > KEY_BYTES_MAX {
            return Err(Error::corrupt(format!("a LUKS key of {key_bytes} bytes")));
        }
        if self.raw.digest_iterations.get() == 0 || self.raw.digest_iterations.get() > ITERATIONS_MAX {
            return Err(Error::corrupt("an impossible number of iterations in the LUKS header"));
        }
        // The key slots of a header in a file of its own end where the file does.
        let payload = self.payload_offset();
        let end = len.unwrap_or(payload);
        for slot in &self.raw.slots {
            let sound = matches!(slot.active.get(), ACTIVE | INACTIVE)
                && slot.stripes.get() <= STRIPES_MAX
                && slot.iterations.get() <= ITERATIONS_MAX
                && (slot.active.get() == INACTIVE || slot.stripes.get() > 0 && slot.iterations.get() > 0);
            let start = u64::from(slot.material_sector.get()) * SECTOR;
            let material = u64::from(slot.stripes.get()) * u64::from(key_bytes);
            if !sound || start < size_of::<Raw>() as u64 || start + material > end.max(payload) {
                return Err(Error::corrupt("a key slot of the LUKS header is damaged"));
            }
        }
        Ok(())
    }

    /// Where data begins in a file of its own.
    pub(crate) fn payload_offset(&self) -> u64 {
        u64::from(self.raw.payload_sector.get()) * SECTOR
    }

    fn key_len(&self) -> usize {
        self.raw.key_bytes.get() as usize
    }

    /// The master key, with a passphrase.
    pub(crate) fn unlock(&self, storage: &dyn Storage, offset: u64, passphrase: &[u8]) -> Result<Key> {
        for index in 0..SLOTS {
            if let Some(key) = self.try_slot(storage, offset, index, passphrase)? {
                return Ok(key);
            }
        }
        Err(Error::WrongSecret)
    }

    /// The master key out of one slot; `None` where the passphrase does not fit.
    fn try_slot(
        &self,
        storage: &dyn Storage,
        offset: u64,
        index: usize,
        passphrase: &[u8],
    ) -> Result<Option<Key>> {
        let slot = &self.raw.slots[index];
        if slot.active.get() != ACTIVE {
            return Ok(None);
        }
        let mut slot_key = Key::empty(self.key_len());
        self.hash.pbkdf2(passphrase, &slot.salt, slot.iterations.get(), &mut slot_key.0);
        let cipher = self.cipher(&slot_key)?;
        let stripes = slot.stripes.get() as usize;
        let len = (stripes * self.key_len()).next_multiple_of(SECTOR as usize);
        let start = offset + u64::from(slot.material_sector.get()) * SECTOR;
        let mut material = Zeroizing::new(storage.read_vec(start, len)?);
        cipher.decrypt(0, &mut material);
        material.truncate(stripes * self.key_len());
        let key = Key(slots::merge(&material, self.key_len(), self.hash));
        Ok(self.is_master(&key).then_some(key))
    }

    fn is_master(&self, key: &Key) -> bool {
        let mut digest = [0; 20];
        self.hash.pbkdf2(&key.0, &self.raw.digest_salt, self.raw.digest_iterations.get(), &mut digest);
        digest.iter().zip(self.raw.digest).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }

    /// The cipher with a key.
    pub(crate) fn cipher(&self, key: &Key) -> Result<Arc<dyn SectorCipher>> {
        cipher::new(self.algorithm, self.mode, self.iv, &key.0)
    }

    /// What `info` shows; `detached`: the header is a file of its own.
    pub(crate) fn info(&self, detached: bool) -> InfoValue {
        let name = |name: &str| name.to_owned();
        let slot = |slot: &Slot| {
            let active = slot.active.get() == ACTIVE;
            let mut facts = vec![(name("active"), active.into())];
            if active {
                facts.push((name("iters"), u64::from(slot.iterations.get()).into()));
            }
            facts.push((name("key-offset"), (u64::from(slot.material_sector.get()) * SECTOR).into()));
            if active {
                facts.push((name("stripes"), u64::from(slot.stripes.get()).into()));
            }
            InfoValue::Map(facts)
        };
        let mut facts = vec![(name("ivgen-alg"), self.iv.name().into())];
        if let Some(hash) = self.iv.hash() {
            facts.push((name("ivgen-hash-alg"), hash.name().into()));
        }
        facts.extend([
            (name("detached-header"), detached.into()),
            (name("hash-alg"), self.hash.name().into()),
            (name("cipher-alg"), self.algorithm.name().into()),
            (name("uuid"), text(&self.raw.uuid).into()),
            (name("format"), "luks".into()),
            (name("cipher-mode"), self.mode.name().into()),
            (name("slots"), InfoValue::List(self.raw.slots.iter().map(slot).collect())),
            (name("payload-offset"), self.payload_offset().into()),
            (name("master-key-iters"), u64::from(self.raw.digest_iterations.get()).into()),
        ]);
        InfoValue::Map(facts)
    }
}
