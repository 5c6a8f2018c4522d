//! The descriptor of a VMDK image: a text that tells its extents, its identity and its parent.
//!
//! Authority: VMware, "Virtual Disk Format 5.0", "The Descriptor File".

use umbra_block::{Error, Result};

/// Bytes of a descriptor that are read.
pub(super) const LEN_MAX: usize = 1 << 20;
/// Extents of one disk: 8 TiB in parts of 2 GiB.
pub(super) const EXTENTS_MAX: usize = 4096;
/// The identity of "no parent".
pub(super) const NO_PARENT: u32 = u32::MAX;

/// What an extent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Data as it is.
    Flat,
    /// Zeroes.
    Zero,
    /// Grains of a hosted product, header `KDMV`.
    Sparse,
    /// Grains of an early ESX server, header `COWD`.
    VmfsSparse,
    /// Grains of a later one.
    SeSparse,
}

/// One line of the extent description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExtentLine {
    pub kind: Kind,
    /// The kind in the image's words.
    pub word: String,
    /// Length in sectors.
    pub sectors: u64,
    /// Its file; empty for [`Kind::Zero`].
    pub file: String,
    /// Where in that file it begins, in sectors.
    pub offset: u64,
}

/// A descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Descriptor {
    pub cid: u32,
    pub parent_cid: Option<u32>,
    pub create_type: String,
    pub parent: Option<String>,
    pub extents: Vec<ExtentLine>,
}

impl Descriptor {
    /// Reads one. What it does not know it passes over.
    pub(super) fn parse(text: &str) -> Result<Descriptor> {
        let mut descriptor = Descriptor::default();
        let mut has_cid = false;
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(extent) = extent(line)? {
                if descriptor.extents.len() == EXTENTS_MAX {
                    let (what, limit) = ("the number of extents".to_owned(), EXTENTS_MAX as u64);
                    return Err(Error::TooLarge { what, value: limit + 1, limit });
                }
                descriptor.extents.push(extent);
                continue;
            }
            let Some((key, value)) = line.split_once('=') else { continue };
            let value = value.trim().trim_matches('"');
            let number = || {
                let digits = value.trim_start_matches("0x");
                u32::from_str_radix(digits, 16)
                    .map_err(|_| Error::corrupt(format!("identity `{value}` is no number")))
            };
            match key.trim().to_ascii_lowercase().as_str() {
                "cid" => (descriptor.cid, has_cid) = (number()?, true),
                "parentcid" => descriptor.parent_cid = Some(number()?).filter(|cid| *cid != NO_PARENT),
                "createtype" => value.clone_into(&mut descriptor.create_type),
                "parentfilenamehint" => descriptor.parent = Some(value.to_owned()),
                _ => {}
            }
        }
        match has_cid && !descriptor.create_type.is_empty() {
            true => Ok(descriptor),
            false => Err(Error::corrupt("its descriptor has no identity or no type")),
        }
    }

    /// The same text with another identity in the line of `key`, `CID` or `parentCID`; `None` where it has none.
    pub(super) fn with_cid(text: &str, key: &str, cid: u32) -> Option<String> {
        let line = format!("\n{key}=");
        let at = text.find(&line)? + line.len();
        let end = at + text[at..].find(['\r', '\n']).unwrap_or(text.len() - at);
        Some(format!("{}{cid:08x}{}", &text[..at], &text[end..]))
    }
}

/// Reads an extent line: `RW 4192256 SPARSE "disk-s001.vmdk"`, with an offset for flat ones.
fn extent(line: &str) -> Result<Option<ExtentLine>> {
    let mut words = line.splitn(4, ' ');
    if !matches!(words.next(), Some("RW" | "RDONLY" | "NOACCESS")) {
        return Ok(None);
    }
    let wrong = || Error::corrupt(format!("extent line `{}`", line.chars().take(80).collect::<String>()));
    let sectors: u64 = words.next().and_then(|word| word.parse().ok()).ok_or_else(wrong)?;
    let word = words.next().ok_or_else(wrong)?;
    let kind = match word {
        "FLAT" | "VMFS" => Kind::Flat,
        "ZERO" => Kind::Zero,
        "SPARSE" => Kind::Sparse,
        "VMFSSPARSE" => Kind::VmfsSparse,
        "SESPARSE" => Kind::SeSparse,
        other => return Err(Error::Unsupported(format!("VMDK extents of type {other}"))),
    };
    if sectors == 0 || sectors > i64::MAX as u64 / 512 {
        return Err(wrong());
    }
    let rest = words.next().unwrap_or_default().trim();
    let (file, after) = match rest.strip_prefix('"').and_then(|rest| rest.split_once('"')) {
        Some(found) => found,
        None if kind == Kind::Zero => ("", ""),
        None => return Err(wrong()),
    };
    let offset = match after.trim() {
        "" => 0,
        number => number.parse().map_err(|_| wrong())?,
    };
    Ok(Some(ExtentLine { kind, word: word.to_owned(), sectors, file: file.to_owned(), offset }))
}

/// What the descriptor of a new image tells.
#[derive(Debug)]
pub(super) struct New<'a> {
    pub cid: u32,
    pub parent: Option<(u32, &'a str)>,
    pub create_type: &'a str,
    pub extents: &'a [ExtentLine],
    pub sectors: u64,
    pub adapter: &'a str,
    pub hardware: &'a str,
    pub tools: &'a str,
}

impl New<'_> {
    /// The text.
    pub(super) fn text(&self) -> String {
        let heads: u64 = if self.adapter == "ide" { 16 } else { 255 };
        let cylinders = self.sectors / (63 * heads);
        let (parent_cid, hint) = match self.parent {
            Some((cid, name)) => (cid, format!("parentFileNameHint=\"{name}\"\n")),
            None => (NO_PARENT, String::new()),
        };
        let mut extents = String::new();
        for ExtentLine { word, sectors, file, offset, kind } in self.extents {
            let offset = if *kind == Kind::Flat { format!(" {offset}") } else { String::new() };
            extents.push_str(&format!("RW {sectors} {word} \"{file}\"{offset}\n"));
        }
        format!(
            "# Disk DescriptorFile\nversion=1\nCID={:08x}\nparentCID={parent_cid:08x}\ncreateType=\"{}\"\n{hint}\n\
             # Extent description\n{extents}\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"{}\"\n\
             ddb.geometry.cylinders = \"{cylinders}\"\nddb.geometry.heads = \"{heads}\"\nddb.geometry.sectors = \"63\"\n\
             ddb.adapterType = \"{}\"\nddb.toolsVersion = \"{}\"\n",
            self.cid, self.create_type, self.hardware, self.adapter, self.tools
        )
    }
}

#[cfg(test)]
#[path = "descriptor_test.rs"]
mod descriptor_test;
