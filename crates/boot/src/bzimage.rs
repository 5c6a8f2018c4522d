//! The header of a bzImage (Linux, Documentation/arch/x86/boot.rst).
//!
//! A bzImage is real-mode code of `setup_sects + 1` sectors, with the setup header in it at 0x1f1, then
//! protected-mode code. That code unpacks the kernel proper, an ELF file which lies in it at `payload_offset`.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{BootError, starts_with};

/// Where the setup header begins, in the file and in the zero page.
pub const HEADER_OFFSET: usize = 0x1f1;
/// The header's end is relative to this place: the target of the jump instruction at 0x200.
const JUMP_BASE: usize = 0x202;
/// The 64-bit entry, relative to the start of the protected-mode code.
const ENTRY_64: u64 = 0x200;
const SECTOR: usize = 512;
const PARAGRAPH: u64 = 16;
const BOOT_FLAG: u16 = 0xaa55;
/// What no kernel exceeds; a kernel says its need itself since protocol 2.10.
const UNPACKED_MAX: u64 = 512 << 20;
/// `loadflags`: the protected-mode code belongs at 1 MiB or above, which tells a bzImage from a zImage.
const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: there is a 64-bit entry.
const XLF_KERNEL_64: u16 = 1 << 0;
/// `xloadflags`: kernel and initrd may be above 4 GiB.
const XLF_ABOVE_4G: u16 = 1 << 1;

/// The setup header, protocol 2.15.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SetupHeader {
    /// Sectors of real-mode code less one; 0 means 4.
    pub setup_sects: u8,
    /// Mount the root read-only.
    pub root_flags: U16,
    /// Length of the protected-mode code in 16-byte units.
    pub syssize: U32,
    /// Unused.
    pub ram_size: U16,
    /// Video mode.
    pub vid_mode: U16,
    /// Root device number.
    pub root_dev: U16,
    /// 0xaa55.
    pub boot_flag: U16,
    /// Jump instruction.
    pub jump: [u8; 2],
    /// "HdrS".
    pub magic: [u8; 4],
    /// Protocol version, major in the high byte.
    pub version: U16,
    /// Real-mode hook.
    pub realmode_swtch: U32,
    /// Unused.
    pub start_sys_seg: U16,
    /// Where the version string is, less 0x200.
    pub kernel_version: U16,
    /// Filled in by the loader: who it is.
    pub type_of_loader: u8,
    /// Flags.
    pub loadflags: u8,
    /// Unused since 2.01.
    pub setup_move_size: U16,
    /// Where the protected-mode code is.
    pub code32_start: U32,
    /// Initrd address, low half; the high half is in the zero page.
    pub ramdisk_image: U32,
    /// Initrd size, low half.
    pub ramdisk_size: U32,
    /// Unused.
    pub bootsect_kludge: U32,
    /// End of the real-mode heap.
    pub heap_end_ptr: U16,
    /// Loader version.
    pub ext_loader_ver: u8,
    /// Loader type.
    pub ext_loader_type: u8,
    /// Command line address, low half.
    pub cmd_line_ptr: U32,
    /// Highest address an initrd may occupy.
    pub initrd_addr_max: U32,
    /// Alignment the kernel wants.
    pub kernel_alignment: U32,
    /// The kernel may be elsewhere than at its preferred address.
    pub relocatable_kernel: u8,
    /// Power of two of the least alignment.
    pub min_alignment: u8,
    /// More flags.
    pub xloadflags: U16,
    /// Greatest length of the command line without its NUL.
    pub cmdline_size: U32,
    /// Hardware environment.
    pub hardware_subarch: U32,
    /// Data for it.
    pub hardware_subarch_data: U64,
    /// Where the packed kernel is, relative to the protected-mode code.
    pub payload_offset: U32,
    /// Its length.
    pub payload_length: U32,
    /// List of further data.
    pub setup_data: U64,
    /// Where the kernel wants to be.
    pub pref_address: U64,
    /// How much memory it needs from there on before it can look at the memory map.
    pub init_size: U32,
    /// EFI entry.
    pub handover_offset: U32,
    /// Where `kernel_info` is.
    pub kernel_info_offset: U32,
}

const _: () = assert!(size_of::<SetupHeader>() == 0x26c - HEADER_OFFSET);

/// A bzImage whose header makes sense.
#[derive(Debug, Clone)]
pub struct BzImage<'a> {
    header: SetupHeader,
    code: &'a [u8],
}

impl<'a> BzImage<'a> {
    /// Whether the file looks like one at all; [`BzImage::parse`] tells more.
    pub fn is_one(file: &[u8]) -> bool {
        file.get(JUMP_BASE..JUMP_BASE + 4) == Some(b"HdrS")
    }

    /// Reads and checks the header.
    ///
    /// # Errors
    ///
    /// [`BootError`] where the file is something else, older than protocol 2.06, truncated, or contradicts itself.
    pub fn parse(file: &'a [u8]) -> Result<Self, BootError> {
        if !Self::is_one(file) {
            return Err(BootError::NotAKernel { starts_with: starts_with(file) });
        }
        let header = read_header(file)?;
        let version = header.version.get();
        if version < 0x206 {
            let [major, minor] = version.to_be_bytes();
            return Err(BootError::OldProtocol { major, minor });
        }
        if header.boot_flag.get() != BOOT_FLAG {
            return Err(BootError::Damaged(format!(
                "its boot flag is {:#06x} instead of 0xaa55",
                header.boot_flag.get()
            )));
        }
        if header.loadflags & LOADED_HIGH == 0 {
            return Err(BootError::Damaged(
                "it is a zImage, which loads below 640 KiB, not a bzImage".into(),
            ));
        }
        let sectors = if header.setup_sects == 0 { 4 } else { usize::from(header.setup_sects) };
        let setup_len = (sectors + 1) * SECTOR;
        let (has, end) = (file.len() as u64, setup_len as u64 + u64::from(header.syssize.get()) * PARAGRAPH);
        // The size is in paragraphs, and some builds do not fill the last one.
        if end.saturating_sub(has) >= PARAGRAPH {
            return Err(BootError::Truncated { what: "the protected-mode code", needs: end, has });
        }
        let end = usize::try_from(end.min(has)).unwrap_or(file.len());
        let code = file.get(setup_len..end).unwrap_or_default();
        Ok(Self { header, code })
    }

    /// The header; fields that this kernel's protocol version does not have are zero.
    pub fn header(&self) -> &SetupHeader {
        &self.header
    }

    /// The protected-mode code: what the 64-bit protocol loads.
    pub fn code(&self) -> &'a [u8] {
        self.code
    }

    /// The offset of the 64-bit entry in [`BzImage::code`].
    ///
    /// # Errors
    ///
    /// [`BootError::No64BitEntry`], or a damaged file that promises one and is shorter.
    pub fn entry_64(&self) -> Result<u64, BootError> {
        if self.header.version.get() < 0x20c || self.header.xloadflags.get() & XLF_KERNEL_64 == 0 {
            return Err(BootError::No64BitEntry);
        }
        if self.code.len() as u64 <= ENTRY_64 {
            return Err(BootError::Damaged("it promises a 64-bit entry and ends before it".into()));
        }
        Ok(ENTRY_64)
    }

    /// Whether kernel and initrd may be above 4 GiB.
    pub fn reaches_above_4g(&self) -> bool {
        self.header.version.get() >= 0x20c && self.header.xloadflags.get() & XLF_ABOVE_4G != 0
    }

    /// The packed kernel, or nothing where the protocol is older than 2.08.
    ///
    /// # Errors
    ///
    /// [`BootError::Truncated`] where it does not lie within the file.
    pub fn payload(&self) -> Result<Option<&'a [u8]>, BootError> {
        if self.header.version.get() < 0x208 || self.header.payload_length.get() == 0 {
            return Ok(None);
        }
        let start = u64::from(self.header.payload_offset.get());
        let end = start + u64::from(self.header.payload_length.get());
        let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
        match range.and_then(|(start, end)| self.code.get(start..end)) {
            Some(payload) => Ok(Some(payload)),
            None => Err(BootError::Truncated {
                what: "the packed kernel",
                needs: end,
                has: self.code.len() as u64,
            }),
        }
    }

    /// The greatest size the packed kernel may have when it is unpacked.
    pub fn unpacked_max(&self) -> u64 {
        match self.header.init_size.get() {
            0 => UNPACKED_MAX,
            size => UNPACKED_MAX.min(u64::from(size)),
        }
    }
}

/// The header as far as the file says it goes; the rest is zero.
fn read_header(file: &[u8]) -> Result<SetupHeader, BootError> {
    let jump = usize::from(file.get(JUMP_BASE - 1).copied().unwrap_or_default());
    let end = (JUMP_BASE + jump).min(HEADER_OFFSET + size_of::<SetupHeader>());
    let Some(bytes) = file.get(HEADER_OFFSET..end) else {
        return Err(BootError::Truncated {
            what: "the setup header",
            needs: end as u64,
            has: file.len() as u64,
        });
    };
    let mut header = SetupHeader::new_zeroed();
    if let Some(known) = header.as_mut_bytes().get_mut(..bytes.len()) {
        known.copy_from_slice(bytes);
    }
    Ok(header)
}
