//! Making new images, and saying beforehand how large they get.

use std::sync::Arc;

use super::Qcow2;
use super::header::{
    COMPRESSION, Crypt, DATA_FILE, DATA_FILE_RAW, EXTENDED_L2, Header, LAZY_REFCOUNTS, MAGIC,
};
use super::meta::Meta;
use crate::{
    Codec, CreateOptions, Environment, Error, FileSpec, Format, FormatDriver, OpenRequest, OptionKind,
    OptionSpec, Options, Preallocation, Result, Storage, Task,
};

const DEFAULT_CLUSTER: u64 = 65536;
const DEFAULT_REFCOUNT_BITS: u64 = 16;

/// Opens and creates qcow2 images.
#[derive(Debug, Clone, Copy)]
pub struct Qcow2Driver;

const OPTIONS: [OptionSpec; 22] = [
    OptionSpec::new("cluster_size", OptionKind::Size, "qcow2 cluster size", Some("65536")),
    OptionSpec::new("compat", OptionKind::Text, "Compatibility level (v2 [0.10] or v3 [1.1])", Some("v3"))
        .amendable(),
    OptionSpec::new(
        "compression_type",
        OptionKind::Text,
        "Compression method used for image cluster compression",
        Some("zlib"),
    ),
    OptionSpec::new("data_file", OptionKind::Text, "File name of an external data file", None).amendable(),
    OptionSpec::new(
        "data_file_raw",
        OptionKind::Bool,
        "The external data file must stay valid as a raw image",
        None,
    )
    .amendable(),
    OptionSpec::new("encrypt.cipher-alg", OptionKind::Text, "Name of encryption cipher algorithm", None),
    OptionSpec::new("encrypt.cipher-mode", OptionKind::Text, "Name of encryption cipher mode", None),
    OptionSpec::new("encrypt.format", OptionKind::Text, "Encrypt the image, format choices: 'luks'", None),
    OptionSpec::new("encrypt.hash-alg", OptionKind::Text, "Name of encryption hash algorithm", None),
    OptionSpec::new("encrypt.iter-time", OptionKind::Number, "Time to spend in PBKDF in milliseconds", None)
        .amendable(),
    OptionSpec::new("encrypt.ivgen-alg", OptionKind::Text, "Name of IV generator algorithm", None),
    OptionSpec::new("encrypt.ivgen-hash-alg", OptionKind::Text, "Name of IV generator hash algorithm", None),
    OptionSpec::new(
        "encrypt.key-secret",
        OptionKind::Text,
        "ID of the secret providing the LUKS passphrase",
        None,
    ),
    OptionSpec::new(
        "encrypt.keyslot",
        OptionKind::Number,
        "Select a single keyslot to modify explicitly",
        None,
    )
    .amendable(),
    OptionSpec::new(
        "encrypt.new-secret",
        OptionKind::Text,
        "New secret to set in the matching keyslots. Empty string to erase",
        None,
    )
    .amendable(),
    OptionSpec::new(
        "encrypt.old-secret",
        OptionKind::Text,
        "Select all keyslots that match this password",
        None,
    )
    .amendable(),
    OptionSpec::new(
        "encrypt.state",
        OptionKind::Text,
        "Select new state of affected keyslots (active/inactive)",
        None,
    )
    .amendable(),
    OptionSpec::new("extended_l2", OptionKind::Bool, "Extended L2 tables", Some("off")),
    OptionSpec::new("lazy_refcounts", OptionKind::Bool, "Postpone refcount updates", Some("off")).amendable(),
    OptionSpec::new(
        "preallocation",
        OptionKind::Text,
        "Preallocation mode (allowed values: off, metadata, falloc, full)",
        Some("off"),
    ),
    OptionSpec::new(
        "refcount_bits",
        OptionKind::Number,
        "Width of a reference count entry in bits",
        Some("16"),
    )
    .amendable(),
    OptionSpec::new(
        "encryption",
        OptionKind::Bool,
        "Encrypt the image with the legacy scheme (only read here)",
        None,
    ),
];

/// What `-o` says, judged.
struct Plan {
    version: u32,
    cluster_bits: u32,
    refcount_order: u32,
    extended: bool,
    lazy: bool,
    codec: Codec,
    data_file: Option<String>,
    data_file_raw: bool,
    preallocation: Preallocation,
    encrypt: Option<Options>,
}

/// `compat` in its spellings.
pub(super) fn parse_compat(text: &str) -> Result<u32> {
    match text {
        "0.10" | "v2" => Ok(2),
        "1.1" | "v3" => Ok(3),
        _ => Err(Error::option(format!("Parameter 'version' does not accept value '{text}'"))),
    }
}

/// `refcount_bits`, as the power of two.
pub(super) fn parse_refcount_bits(text: &str) -> Result<u32> {
    let bits = text.parse::<u64>().ok().filter(|bits| bits.is_power_of_two() && *bits <= 64);
    let wrong = || Error::option("Refcount width must be a power of two and may not exceed 64 bits");
    Ok(bits.ok_or_else(wrong)?.trailing_zeros())
}

impl Plan {
    fn parse(mut options: Options) -> Result<Self> {
        let version = options.take("compat").map_or(Ok(3), |text| parse_compat(&text))?;
        let cluster = options.take_size("cluster_size")?.unwrap_or(DEFAULT_CLUSTER);
        if !cluster.is_power_of_two() || !(9..=21).contains(&cluster.trailing_zeros()) {
            return Err(Error::option("Cluster size must be a power of two between 512 and 2048k"));
        }
        let bits = options.take("refcount_bits").unwrap_or_else(|| DEFAULT_REFCOUNT_BITS.to_string());
        let codec = match options.take("compression_type").as_deref() {
            None | Some("zlib") => Codec::Deflate,
            Some("zstd") => Codec::Zstd,
            Some(other) => {
                return Err(Error::option(format!(
                    "Parameter 'compression-type' does not accept value '{other}'"
                )));
            }
        };
        let plan = Self {
            version,
            cluster_bits: cluster.trailing_zeros(),
            refcount_order: parse_refcount_bits(&bits)?,
            extended: options.take_bool("extended_l2")?.unwrap_or(false),
            lazy: options.take_bool("lazy_refcounts")?.unwrap_or(false),
            codec,
            data_file: options.take("data_file"),
            data_file_raw: options.take_bool("data_file_raw")?.unwrap_or(false),
            preallocation: options.take_preallocation()?,
            encrypt: take_encryption(&mut options)?,
        };
        options.finish()?;
        plan.judge()?;
        Ok(plan)
    }

    fn judge(&self) -> Result<()> {
        let v3_only = [
            (
                self.lazy,
                "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            ),
            (
                self.extended,
                "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            ),
            (
                self.refcount_order != 4,
                "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)",
            ),
            (
                self.codec == Codec::Zstd,
                "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            ),
            (
                self.data_file.is_some(),
                "External data files are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            ),
        ];
        if self.version < 3
            && let Some((_, what)) = v3_only.iter().find(|(wanted, _)| *wanted)
        {
            return Err(Error::option(*what));
        }
        if self.extended && self.cluster_bits < 14 {
            return Err(Error::option(
                "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
            ));
        }
        if self.data_file_raw && self.data_file.is_none() {
            return Err(Error::option("data-file-raw requires data-file"));
        }
        if self.preallocation != Preallocation::Off && self.encrypt.is_some() && self.version < 3 {
            // What is allocated would read as deciphered zeroes, and version 2 cannot say that it does not.
            return Err(Error::Unsupported(
                "preallocation of an encrypted image of version 2; use compat=v3, or leave it off".to_owned(),
            ));
        }
        Ok(())
    }

    fn header(&self, create: &CreateOptions) -> Header {
        let flag = |on: bool, bit: u64| if on { bit } else { 0 };
        Header {
            version: self.version,
            cluster_bits: self.cluster_bits,
            size: create.size.next_multiple_of(512),
            crypt: if self.encrypt.is_some() { Crypt::Luks } else { Crypt::None },
            l1_len: 0,
            l1_offset: 0,
            reftable_offset: 1 << self.cluster_bits,
            reftable_clusters: 1,
            snapshots: 0,
            snapshots_offset: 0,
            incompatible: flag(self.data_file.is_some(), DATA_FILE)
                | flag(self.codec != Codec::Deflate, COMPRESSION)
                | flag(self.extended, EXTENDED_L2),
            compatible: flag(self.lazy, LAZY_REFCOUNTS),
            autoclear: flag(self.data_file_raw, DATA_FILE_RAW),
            refcount_order: self.refcount_order,
            codec: self.codec,
            backing_name: create.backing.as_ref().map(|backing| backing.name.clone()),
            backing_format: create.backing.as_ref().and_then(|backing| backing.format.clone()),
            data_file: self.data_file.clone(),
            bitmaps: None,
            crypto: None,
            unknown: Vec::new(),
        }
    }
}

/// Options of encryption, where it is wanted.
fn take_encryption(options: &mut Options) -> Result<Option<Options>> {
    let mut encrypt = options.take_prefixed("encrypt.");
    if options.take_bool("encryption")?.unwrap_or(false) {
        encrypt.set("format", "aes");
    }
    if encrypt.is_empty() {
        return Ok(None);
    }
    match encrypt.take("format").as_deref() {
        Some("luks") => Ok(Some(encrypt)),
        Some("aes") => Err(Error::Unsupported(
            "creating images with the legacy AES encryption, which is not secure; use encrypt.format=luks"
                .to_owned(),
        )),
        Some(other) => Err(Error::option(format!("Parameter 'format' does not accept value '{other}'"))),
        None => Err(Error::option("encrypt.format is missing")),
    }
}

/// Writes an empty image.
fn create(
    storage: Arc<dyn Storage>,
    create: &CreateOptions,
    environment: &Environment,
    task: &Task<'_>,
) -> Result<()> {
    let mut plan = Plan::parse(create.options.clone())?;
    if let Some(backing) = &create.backing {
        if backing.format.is_none() {
            return Err(Error::option("Backing file specified without backing format"));
        }
        if plan.preallocation != Preallocation::Off && !plan.extended {
            return Err(Error::option(
                "Backing file and preallocation can only be used at the same time if extended_l2 is on",
            ));
        }
        if plan.data_file_raw {
            return Err(Error::option("Backing file and data-file-raw cannot be used at the same time"));
        }
    }
    if create.size > i64::MAX as u64 - (1 << plan.cluster_bits) {
        return Err(Error::TooLarge { what: "disk size".into(), value: create.size, limit: i64::MAX as u64 });
    }
    let header = plan.header(create);
    let size = header.size;
    let data = match &plan.data_file {
        Some(file) => Some(environment.opener.create(&FileSpec::file(file))?),
        None => None,
    };
    if let Some(data) = data.as_ref().filter(|_| plan.data_file_raw) {
        data.set_len(size)?;
    }
    header.to_bytes()?;
    storage.set_len(0)?;
    let encrypt = plan.encrypt.take();
    let mut meta = blank(storage, data, header)?;
    if let Some(encrypt) = encrypt {
        let bytes = crate::luks::format_header(encrypt, &environment.secrets, false)?;
        let offset = meta.store(&bytes)?;
        meta.header.crypto = Some((offset, bytes.len() as u64));
    }
    let l1_len = meta.layout.l1_len(size).max(1);
    let table = super::header::L1_BYTES_MAX;
    if l1_len * 8 > table {
        return Err(Error::option(
            "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
        ));
    }
    let clusters = meta.layout.clusters(l1_len * 8);
    meta.header.l1_offset = meta.allocate(clusters)?;
    meta.header.l1_len = l1_len as u32;
    let end = meta.header.l1_offset + clusters * meta.layout.cluster();
    meta.file.write_zeroes(meta.header.l1_offset, clusters * meta.layout.cluster(), true)?;
    meta.l1 = vec![0; l1_len as usize];
    meta.write_refcounts()?;
    if meta.file.len()? < end {
        meta.file.set_len(end)?;
    }
    meta.file.flush()?;
    meta.write_header()?;
    meta.file.flush()?;
    meta.own_all();
    // A raw data file is the disk: all of it is mapped.
    let preallocation = match plan.preallocation {
        Preallocation::Off if plan.data_file_raw => Preallocation::Metadata,
        other => other,
    };
    if preallocation != Preallocation::Off {
        meta.preallocate(0, size, preallocation, task)?;
    }
    meta.finish()
}

/// An image of a header, a refcount table and its first block, of which only the refcounts are in the file.
fn blank(storage: Arc<dyn Storage>, data: Option<Arc<dyn Storage>>, header: Header) -> Result<Meta> {
    let cluster = 1u64 << header.cluster_bits;
    storage.write_zeroes(0, 3 * cluster, true)?;
    let mut meta = Meta::load(storage, data, header, true)?;
    meta.reftable = vec![2 * cluster];
    meta.reftable_dirty.insert(0);
    meta.change_refcounts(0, 3, 1)?;
    meta.own_all();
    Ok(meta)
}

/// Bytes of refcount table and blocks for so many clusters beside their own.
fn refcount_bytes(clusters: u64, cluster: u64, order: u32) -> u64 {
    let per_block = (cluster * 8) >> order;
    let (mut blocks, mut table) = (0, 0);
    loop {
        let wanted_blocks = (clusters + table + blocks).div_ceil(per_block);
        let wanted_table = (wanted_blocks * 8).div_ceil(cluster);
        if (wanted_blocks, wanted_table) == (blocks, table) {
            return (blocks + table) * cluster;
        }
        (blocks, table) = (wanted_blocks, wanted_table);
    }
}

/// Bytes of an image with all of its disk allocated.
fn full_bytes(size: u64, plan: &Plan) -> u64 {
    let cluster = 1u64 << plan.cluster_bits;
    let data = size.next_multiple_of(cluster);
    let entry = if plan.extended { 16 } else { 8 };
    let tables = (data / cluster * entry).div_ceil(cluster);
    let l1 = (tables * 8).div_ceil(cluster);
    let meta = (1 + tables + l1) * cluster;
    meta + refcount_bytes((meta + data) / cluster, cluster, plan.refcount_order) + data
}

impl FormatDriver for Qcow2Driver {
    fn name(&self) -> &'static str {
        "qcow2"
    }

    fn probe(&self, head: &[u8], _len: u64, _name: &str) -> u8 {
        let word =
            |at: usize| head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
        if word(0) == Some(MAGIC) && word(4).is_some_and(|version| version >= 2) { 100 } else { 0 }
    }

    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Format>> {
        Ok(Box::new(Qcow2::open(request)?))
    }

    fn create_options(&self) -> &'static [OptionSpec] {
        &OPTIONS
    }

    fn create(
        &self,
        storage: Arc<dyn Storage>,
        _name: &str,
        options: &CreateOptions,
        environment: &Environment,
        task: &Task<'_>,
    ) -> Result<()> {
        create(storage, options, environment, task)
    }

    fn measure(&self, options: &CreateOptions, data: u64) -> Result<Option<(u64, u64)>> {
        let plan = Plan::parse(options.options.clone())?;
        let size = options.size.next_multiple_of(512);
        if size > 1 << 56 {
            return Err(Error::TooLarge { what: "disk size".into(), value: size, limit: 1 << 56 });
        }
        let luks = match &plan.encrypt {
            Some(_) => crate::luks::HEADER_BYTES.next_multiple_of(1 << plan.cluster_bits),
            None => 0,
        };
        let full = full_bytes(size, &plan) + luks;
        let all = matches!(plan.preallocation, Preallocation::Falloc | Preallocation::Full);
        let disk = size.next_multiple_of(1 << plan.cluster_bits);
        let used = if all { disk } else { data.min(disk) };
        Ok(Some((full - disk + used, full)))
    }
}
