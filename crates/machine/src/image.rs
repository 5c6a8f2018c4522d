//! The kernel and initrd that a machine boots, and how they come into its memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use umbra_boot::acpi::AcpiSpec;
use umbra_boot::{BootSource, Entry, Layout, LoadMethod, load};
use umbra_engine::{CpuState, SavedSegment, SavedTable};
use umbra_memory::Memory;

use crate::MachineError;
use crate::spec::{KernelEntry, MachineSpec};

/// No kernel or initrd is larger: it is read into memory as a whole.
const FILE_MAX: u64 = 4 << 30;

/// Files that are read again at each reset.
pub struct BootFiles {
    /// bzImage or ELF vmlinux.
    pub kernel: File,
    /// Initial RAM disk.
    pub initrd: Option<File>,
}

fn read_whole(file: &File, what: &'static str) -> Result<Vec<u8>, MachineError> {
    let len = file.metadata().map_err(|e| MachineError::Host(what, e))?.len();
    if len > FILE_MAX {
        return Err(MachineError::Host(
            what,
            io::Error::new(io::ErrorKind::FileTooLarge, "the file is larger than 4 GiB"),
        ));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|e| MachineError::Host(what, e))?;
    Ok(bytes)
}

/// Puts kernel, initrd and tables into memory; returns how the first processor starts.
pub(crate) fn put(
    files: &BootFiles,
    spec: &MachineSpec,
    layout: &Layout,
    memory: &Memory,
) -> Result<Entry, MachineError> {
    let kernel = read_whole(&files.kernel, "cannot read the kernel")?;
    let initrd = files.initrd.as_ref().map(|f| read_whole(f, "cannot read the initrd")).transpose()?;
    let method = match spec.entry {
        KernelEntry::Auto => LoadMethod::Auto,
        KernelEntry::Pvh => LoadMethod::Pvh,
        KernelEntry::Linux64 => LoadMethod::Linux64,
    };
    let source = BootSource { kernel: &kernel, initrd: initrd.as_deref(), cmdline: &spec.cmdline, method };
    let image = load(&source, layout)?;
    // A guest keeps memory for each processor that could come later, so the tables name only those that are there.
    let acpi = umbra_boot::acpi::tables(&AcpiSpec { cpus: spec.cpus, cpus_max: spec.cpus }, layout)?;
    let smbios = umbra_boot::smbios::tables(spec.uuid_bytes()?);
    for segment in image.segments.iter().chain([&acpi, &smbios]) {
        memory.write(segment.gpa, &segment.data)?;
        zero(memory, segment.gpa + segment.data.len() as u64, segment.zeroes)?;
    }
    Ok(image.entry)
}

/// Clears what is not zero already, so that fresh memory stays untouched.
fn zero(memory: &Memory, mut gpa: u64, mut len: u64) -> Result<(), MachineError> {
    let mut piece = [0; 4096];
    while len > 0 {
        let n = len.min(4096 - gpa % 4096);
        let part = &mut piece[..n as usize];
        memory.read(gpa, part)?;
        if part.iter().any(|b| *b != 0) {
            part.fill(0);
            memory.write(gpa, part)?;
        }
        (gpa, len) = (gpa + n, len - n);
    }
    Ok(())
}

/// The first processor's state at the kernel's entry.
pub(crate) fn enter(state: &mut CpuState, entry: &Entry) {
    state.gpr = entry.gpr;
    (state.rip, state.rflags) = (entry.rip, entry.rflags);
    (state.cr0, state.cr3, state.cr4, state.efer) = (entry.cr0, entry.cr3, entry.cr4, entry.efer);
    state.segments = [SavedSegment(entry.data); 6];
    state.segments[1] = SavedSegment(entry.cs);
    (state.tr, state.ldtr) = (SavedSegment(entry.tr), SavedSegment(entry.ldtr));
    (state.gdtr, state.idtr) = (SavedTable(entry.gdtr), SavedTable(entry.idtr));
}
