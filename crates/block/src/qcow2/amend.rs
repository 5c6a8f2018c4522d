//! Changes of an image's options: version, refcount width, lazy refcounts, names, key slots.

use super::create::{parse_compat, parse_refcount_bits};
use super::header::{CORRUPT, Crypt, DATA_FILE_RAW, DIRTY, LAZY_REFCOUNTS};
use super::layout::{Entry, ZERO};
use super::meta::Meta;
use crate::{BackingRef, Error, Options, Result, Secrets, SectorCipher, StorageExt, Task};

impl Meta {
    /// Changes the backing file that the header names.
    pub(super) fn set_backing(&mut self, backing: Option<&BackingRef>) -> Result<()> {
        if backing.is_some() && self.header.autoclear & DATA_FILE_RAW != 0 {
            return Err(Error::Refused("an image with a raw data file has no backing file".to_owned()));
        }
        let old = (self.header.backing_name.clone(), self.header.backing_format.clone());
        self.header.backing_name = backing.map(|backing| backing.name.clone());
        self.header.backing_format = backing.and_then(|backing| backing.format.clone());
        self.flush()?;
        if let Err(error) = self.write_header() {
            (self.header.backing_name, self.header.backing_format) = old;
            return Err(error);
        }
        self.file.flush()
    }

    /// Changes what `options` names.
    pub(super) fn amend(
        &mut self,
        mut options: Options,
        secrets: &Secrets,
        unlocking: Option<&[u8]>,
        cipher: Option<&dyn SectorCipher>,
        task: &Task<'_>,
    ) -> Result<()> {
        let version = options.take("compat").map(|text| {
            parse_compat(&text).map_err(|_| Error::option(format!("Unknown compatibility level {text}")))
        });
        let version = version.transpose()?;
        let lazy = options.take_bool("lazy_refcounts")?;
        let order = options.take("refcount_bits").map(|text| parse_refcount_bits(&text)).transpose()?;
        let data_file = options.take("data_file");
        let data_file_raw = options.take_bool("data_file_raw")?;
        let slots = options.take_prefixed("encrypt.");
        options.finish()?;
        if !slots.is_empty() {
            let Some((offset, len)) = self.header.crypto else {
                return Err(Error::option(
                    "encrypt.* can only be amended on images that are encrypted with LUKS",
                ));
            };
            let file = self.file.clone();
            let mut luks = crate::luks::Header::read(&*file, offset, Some(len))?;
            luks.amend(&*file, offset, slots, secrets, unlocking)?;
        }
        if version == Some(3) {
            self.upgrade()?;
        }
        if let Some(order) = order.filter(|&order| order != self.header.refcount_order) {
            self.change_refcount_width(order, version, task)?;
        }
        if let Some(lazy) = lazy {
            self.amend_lazy(lazy, version)?;
        }
        if let Some(name) = data_file {
            if !self.layout.data_file {
                return Err(Error::option(
                    "data-file can only be set for images that use an external data file",
                ));
            }
            self.header.data_file = Some(name).filter(|name| !name.is_empty());
            self.write_header()?;
        }
        if let Some(raw) = data_file_raw {
            if raw && self.header.autoclear & DATA_FILE_RAW == 0 {
                return Err(Error::option("data-file-raw cannot be set on existing images"));
            }
            if !raw {
                self.header.autoclear &= !DATA_FILE_RAW;
                self.write_header()?;
            }
        }
        if version == Some(2) {
            self.downgrade(cipher, task)?;
        }
        self.flush()
    }

    fn upgrade(&mut self) -> Result<()> {
        if self.header.version < 3 {
            self.flush()?;
            self.header.version = 3;
            self.write_header()?;
            self.file.flush()?;
        }
        Ok(())
    }

    fn amend_lazy(&mut self, lazy: bool, version: Option<u32>) -> Result<()> {
        if lazy && (self.header.version < 3 || version == Some(2)) {
            return Err(Error::option(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
            ));
        }
        self.finish()?;
        self.header.compatible =
            self.header.compatible & !LAZY_REFCOUNTS | if lazy { LAZY_REFCOUNTS } else { 0 };
        self.lazy_wanted = lazy;
        self.write_header()?;
        self.file.flush()
    }

    /// Turns the image into one of version 2, where it has nothing that version 2 has not.
    fn downgrade(&mut self, cipher: Option<&dyn SectorCipher>, task: &Task<'_>) -> Result<()> {
        if self.header.version == 2 {
            return Ok(());
        }
        self.finish()?;
        if self.header.refcount_order != 4 {
            return Err(Error::option("compat=0.10 requires refcount_bits=16"));
        }
        if self.header.incompatible & !(DIRTY | CORRUPT) != 0 || self.header.bitmaps.is_some() {
            return Err(Error::Unsupported(
                "compat=0.10 for an image with an external data file, extended L2 entries, zstd or bitmaps"
                    .to_owned(),
            ));
        }
        if !self.snapshots.is_empty() {
            let other = self.snapshots.iter().any(|snapshot| snapshot.info.disk_size != self.header.size);
            if other {
                return Err(Error::Refused(
                    "snapshots have another disk size, which version 2 cannot say".to_owned(),
                ));
            }
        }
        self.write_out_zeroes(cipher, task)?;
        self.header.version = 2;
        (self.header.incompatible, self.header.compatible, self.header.autoclear) = (0, 0, 0);
        self.lazy_wanted = false;
        self.write_header()?;
        self.file.flush()
    }

    /// Version 2 has no zero clusters: they get places full of zeroes, or none where there is nothing behind.
    fn write_out_zeroes(&mut self, cipher: Option<&dyn SectorCipher>, task: &Task<'_>) -> Result<()> {
        let layout = self.layout;
        for snapshot in self.snapshots.clone() {
            let l1 = self.snapshot_l1(&snapshot)?;
            for entry in l1 {
                let table = entry & super::layout::OFFSET_MASK;
                if table != 0 && self.has_zeroes(table)? {
                    return Err(Error::Unsupported(format!(
                        "compat=0.10: snapshot '{}' has zero clusters; delete it first",
                        snapshot.info.name
                    )));
                }
            }
        }
        let behind = self.header.backing_name.is_some();
        for l1_index in 0..self.l1.len() as u64 {
            task.at(l1_index, self.l1.len() as u64)?;
            let Some(table) = self.l2_table(l1_index)? else { continue };
            if !self.has_zeroes(table)? {
                continue;
            }
            let table = self.l2_table_for_change(l1_index)?;
            for index in 0..layout.l2_entries() {
                let entry = self.entry(table, index)?;
                if entry.is_compressed() || entry.word & ZERO == 0 {
                    continue;
                }
                self.relieve()?;
                let host = entry.host(layout)?.filter(|_| entry.copied());
                let new = match host {
                    None if !behind => Entry::default(),
                    host => {
                        let host = host.map_or_else(|| self.allocate(1), Ok)?;
                        let guest = (l1_index * layout.l2_entries() + index) << layout.cluster_bits;
                        self.write_zeroes_at(host, guest, cipher)?;
                        Entry::data(host, layout)
                    }
                };
                self.set_entry(table, index, new)?;
                if host.is_none() {
                    self.free_entry(entry)?;
                }
            }
        }
        self.flush()
    }

    /// Fills a cluster's place with what reads as zeroes.
    fn write_zeroes_at(&mut self, host: u64, guest: u64, cipher: Option<&dyn SectorCipher>) -> Result<()> {
        let cluster = self.layout.cluster();
        let sector = match self.header.crypt {
            Crypt::None => return self.file.write_zeroes(host, cluster, false),
            Crypt::Luks => host / 512,
            Crypt::Aes => guest / 512,
        };
        let cipher = cipher.ok_or_else(|| Error::NeedsSecret("image".to_owned()))?;
        let mut bytes = vec![0; cluster as usize];
        cipher.encrypt(sector, &mut bytes);
        self.file.write_at(host, &bytes)
    }

    fn has_zeroes(&mut self, table: u64) -> Result<bool> {
        let mut found = false;
        self.for_entries(table, |_, _, entry| {
            found |= !entry.is_compressed() && entry.word & ZERO != 0;
            Ok(())
        })?;
        Ok(found)
    }

    /// Gives the image refcounts of another width: counts everything into new blocks, then exchanges the tables.
    fn change_refcount_width(&mut self, order: u32, version: Option<u32>, task: &Task<'_>) -> Result<()> {
        if order != 4 && (self.header.version < 3 || version == Some(2)) {
            return Err(Error::option(
                "Different refcount widths than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
            ));
        }
        self.finish()?;
        // It refuses where a cluster has more references than fit.
        self.rebuild_refcounts(order, task)
    }
}
