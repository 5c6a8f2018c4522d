//! What can be wrong with the files and sizes a user names, in words that say what to do.

use thiserror::Error;

/// Why a guest cannot be laid out in memory.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BootError {
    /// The file is neither a bzImage nor an ELF file.
    #[error(
        "the kernel file is not a Linux kernel: expected a bzImage or an ELF file, but it starts with {starts_with}"
    )]
    NotAKernel {
        /// The first bytes, as hexadecimal digits.
        starts_with: String,
    },

    /// The file ends before something that its own headers promise.
    #[error(
        "the kernel file is truncated: {what} ends at byte {needs}, but only {has} bytes are there; fetch it again"
    )]
    Truncated {
        /// What does not fit.
        what: &'static str,
        /// Where it would end.
        needs: u64,
        /// How many bytes there are.
        has: u64,
    },

    /// A header field has a value that no kernel has.
    #[error("the kernel file is damaged: {0}")]
    Damaged(String),

    /// The boot protocol is older than this loader.
    #[error(
        "the kernel speaks version {major}.{minor:02} of the Linux boot protocol; 2.06 (Linux 2.6.22) or later is needed"
    )]
    OldProtocol {
        /// Major version.
        major: u8,
        /// Minor version.
        minor: u8,
    },

    /// The 64-bit protocol was asked for, and the kernel has no such entry.
    #[error(
        "the kernel has no 64-bit entry point: it is a 32-bit kernel or older than Linux 3.8; use an x86-64 kernel"
    )]
    No64BitEntry,

    /// PVH was asked for, and the kernel has no such entry.
    #[error(
        "the kernel has no PVH entry point (no XEN_ELFNOTE_PHYS32_ENTRY note); build it with CONFIG_PVH, or boot the bzImage by the 64-bit protocol"
    )]
    NoPvhEntry,

    /// The 64-bit protocol was asked for with an ELF file.
    #[error("an ELF kernel has no Linux boot header: boot it by PVH, or name its bzImage (vmlinuz) instead")]
    ElfWithout64BitProtocol,

    /// An ELF file for another machine.
    #[error("the ELF file is not a kernel for x86-64: {0}")]
    WrongElf(String),

    /// The payload is packed in a way this loader cannot undo.
    #[error(
        "the kernel inside the bzImage is packed with {0}, which cannot be unpacked here; boot it by the 64-bit protocol"
    )]
    UnknownCompression(String),

    /// Unpacking failed.
    #[error("the {format} data of the kernel inside the bzImage is damaged: {reason}")]
    Unpack {
        /// Name of the format.
        format: &'static str,
        /// What the decoder said.
        reason: String,
    },

    /// The unpacked kernel exceeds the memory that the kernel itself asks for.
    #[error(
        "the {format} data of the kernel inside the bzImage unpacks to more than the {limit} bytes it may have"
    )]
    UnpacksTooLarge {
        /// Name of the format.
        format: &'static str,
        /// Greatest size.
        limit: u64,
    },

    /// The kernel alone, or with its initrd, does not fit.
    #[error(
        "the guest's memory is too small: {what} needs at least {needs_mib} MiB, but it has {has_mib} MiB"
    )]
    MemoryTooSmall {
        /// What needs it: "the kernel", "the kernel with its initrd".
        what: &'static str,
        /// The least memory that does, in MiB.
        needs_mib: u64,
        /// What the guest has, in MiB.
        has_mib: u64,
    },

    /// The initrd does not fit where this kernel can reach it, however much memory there is.
    #[error(
        "the initrd of {size} bytes is too large: this kernel, booted this way, takes at most {room} bytes{hint}"
    )]
    InitrdTooLarge {
        /// Its size.
        size: u64,
        /// The greatest size.
        room: u64,
        /// Another way, if there is one.
        hint: &'static str,
    },

    /// The initrd is empty.
    #[error("the initrd is empty; leave it out, or name a file with content")]
    EmptyInitrd,

    /// The command line is longer than the kernel keeps.
    #[error("the kernel command line has {len} bytes; this kernel takes at most {max}")]
    CmdlineTooLong {
        /// Its length.
        len: usize,
        /// The greatest length, without the final NUL.
        max: usize,
    },

    /// The command line holds a NUL byte.
    #[error("the kernel command line holds a NUL byte at position {0}; the kernel would ignore what follows")]
    CmdlineNul(usize),

    /// A memory size that the machine type cannot have.
    #[error(
        "a machine of type umbra-1 cannot have {bytes} bytes of memory: it takes a multiple of 4096 from {min_mib} MiB to {max_mib} MiB on a processor with {phys_bits} physical address bits"
    )]
    MemorySize {
        /// What was asked for.
        bytes: u64,
        /// The least, in MiB.
        min_mib: u64,
        /// The most, in MiB.
        max_mib: u64,
        /// Physical address width of the processor model.
        phys_bits: u8,
    },

    /// A number of processors that the machine type cannot have.
    #[error("a machine of type umbra-1 has 1 to {max} processors, and no more at start than it may grow to; {cpus} at start and {cpus_max} at most were asked for", max = crate::layout::CPUS_MAX)]
    CpuCount {
        /// Processors at start.
        cpus: u32,
        /// Processors it may grow to.
        cpus_max: u32,
    },

    /// A path or size that the archive format cannot express.
    #[error("cannot put \"{path}\" into the initramfs: {reason}")]
    Archive {
        /// The path.
        path: String,
        /// Why.
        reason: &'static str,
    },
}

/// The first bytes of a file for an error message.
pub(crate) fn starts_with(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing: it is empty".to_owned();
    }
    let hex: Vec<String> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
    hex.join(" ")
}
