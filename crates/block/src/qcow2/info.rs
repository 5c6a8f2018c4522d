//! What an image says of itself, in the names of `qemu-img info`.

use super::header::{CORRUPT, Crypt, DATA_FILE_RAW, DIRTY, LAZY_REFCOUNTS};
use super::meta::Meta;
use crate::{BackingRef, Codec, ImageInfo, InfoValue, Result};

type Facts = Vec<(String, InfoValue)>;

pub(super) fn of(meta: &Meta, name: &str) -> Result<ImageInfo> {
    let header = &meta.header;
    let bitmaps = meta.bitmap_infos();
    let mut specific = Facts::new();
    let mut put = |name: &str, value: InfoValue| specific.push((name.to_owned(), value));
    put("compat", if header.version == 2 { "0.10" } else { "1.1" }.into());
    put("compression-type", if header.codec == Codec::Zstd { "zstd" } else { "zlib" }.into());
    if header.version >= 3 {
        put("lazy-refcounts", (header.compatible & LAZY_REFCOUNTS != 0).into());
    }
    if !bitmaps.is_empty() {
        put("bitmaps", InfoValue::List(bitmaps.iter().map(bitmap).collect()));
    }
    put("refcount-bits", (1u64 << header.refcount_order).into());
    if header.version >= 3 {
        if let Some(file) = &header.data_file {
            put("data-file", file.clone().into());
        }
        if meta.layout.data_file {
            put("data-file-raw", (header.autoclear & DATA_FILE_RAW != 0).into());
        }
    }
    match (header.crypt, header.crypto) {
        (Crypt::Luks, Some((offset, len))) => {
            let luks = crate::luks::Header::read(&*meta.file, offset, Some(len))?;
            put("encrypt", luks.info(false));
        }
        (Crypt::Aes, _) => put("encrypt", InfoValue::Map(vec![("format".to_owned(), "aes".into())])),
        _ => {}
    }
    if header.version >= 3 {
        put("corrupt", header.has(CORRUPT).into());
        put("extended-l2", meta.layout.extended.into());
    }
    Ok(ImageInfo {
        format: "qcow2".to_owned(),
        filename: name.to_owned(),
        virtual_size: header.size,
        actual_size: meta.file.info().allocated,
        cluster_size: Some(meta.layout.cluster()),
        encrypted: header.crypt != Crypt::None,
        compressed: false,
        dirty: header.has(DIRTY),
        corrupt: header.has(CORRUPT),
        backing: header
            .backing_name
            .clone()
            .map(|name| BackingRef { name, format: header.backing_format.clone() }),
        snapshots: meta.snapshots.iter().map(|snapshot| snapshot.info.clone()).collect(),
        bitmaps,
        specific,
        specific_type: "qcow2".to_owned(),
    })
}

fn bitmap(bitmap: &crate::BitmapInfo) -> InfoValue {
    let flags = [(bitmap.in_use, "in-use"), (bitmap.auto, "auto")];
    let flags = flags.into_iter().filter(|(on, _)| *on).map(|(_, name)| name.into()).collect();
    InfoValue::Map(vec![
        ("flags".to_owned(), InfoValue::List(flags)),
        ("name".to_owned(), bitmap.name.clone().into()),
        ("granularity".to_owned(), bitmap.granularity.into()),
    ])
}
