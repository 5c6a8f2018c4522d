use std::process::Command;

use crate::acpi::{AcpiSpec, tables};
use crate::error::BootError;
use crate::layout::{ACPI_TABLES, GIB, Layout};
use crate::segment::Segment;

fn made(cpus: u32, cpus_max: u32, ram: u64) -> Segment<'static> {
    tables(&AcpiSpec { cpus, cpus_max }, &Layout::new(ram, 46).unwrap()).unwrap()
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |value, b| value << 8 | u64::from(*b))
}

/// The table at an address, as its own length says.
fn table<'a>(segment: &'a Segment<'_>, gpa: u64) -> &'a [u8] {
    let at = &segment.data[(gpa - segment.gpa) as usize..];
    &at[..number(at, 4, 4) as usize]
}

/// Every table by its signature, found from the root pointer as a kernel finds them.
fn walk<'a>(segment: &'a Segment<'_>) -> Vec<(String, &'a [u8])> {
    let rsdp = &segment.data[..36];
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(rsdp), rsdp[15]), (0, 0, 2));
    let xsdt = table(segment, number(rsdp, 24, 8));
    let mut found = vec![xsdt];
    for entry in xsdt[36..].chunks(8) {
        found.push(table(segment, number(entry, 0, 8)));
    }
    let fadt = *found.iter().find(|t| t.starts_with(b"FACP")).unwrap();
    found.push(table(segment, number(fadt, 140, 8)));
    found.push(table(segment, number(fadt, 36, 4)));
    found.into_iter().map(|t| (String::from_utf8_lossy(&t[..4]).into_owned(), t)).collect()
}

fn find<'a>(segment: &'a Segment<'_>, signature: &str) -> &'a [u8] {
    walk(segment).into_iter().find(|(name, _)| name == signature).unwrap().1
}

/// The MADT's entries: (type, bytes).
fn madt_entries(madt: &[u8]) -> Vec<(u8, &[u8])> {
    let mut rest = &madt[44..];
    let mut out = Vec::new();
    while let [kind, length, ..] = *rest {
        let (entry, tail) = rest.split_at(usize::from(length));
        out.push((kind, entry));
        rest = tail;
    }
    assert!(rest.is_empty());
    out
}

#[test]
fn all_tables_are_found_and_whole() {
    for (cpus, cpus_max, ram) in [(1, 1, GIB), (4, 4, 6 * GIB), (1, 254, 64 * GIB), (254, 254, 64 * GIB)] {
        let segment = made(cpus, cpus_max, ram);
        assert!(segment.range().end <= ACPI_TABLES.end, "{:x?}", segment.range());
        let found = walk(&segment);
        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["XSDT", "FACP", "APIC", "MCFG", "DSDT", "FACS"]);
        for (name, bytes) in found {
            // The FACS has no checksum.
            assert!(name == "FACS" || sum(bytes) == 0, "{name}");
            assert!(name == "FACS" || &bytes[10..16] == b"UMBRA ", "{name}");
        }
    }
}

#[test]
fn the_fadt_tells_the_fixed_hardware() {
    let segment = made(1, 1, GIB);
    let fadt = find(&segment, "FACP");
    assert_eq!((fadt.len(), fadt[8]), (276, 6));
    assert_eq!(number(fadt, 46, 2), 9, "SCI");
    assert_eq!(number(fadt, 48, 4), 0, "no SMI command port: always in ACPI mode");
    assert_eq!([number(fadt, 56, 4), number(fadt, 64, 4), number(fadt, 76, 4)], [0x600, 0x604, 0x608]);
    assert_eq!([fadt[88], fadt[89], fadt[91]], [4, 2, 4], "lengths");
    let flags = number(fadt, 112, 4);
    assert_eq!(flags & (1 << 20), 0, "not hardware-reduced");
    assert_eq!(flags & (1 << 4), 0, "the power button is fixed hardware");
    assert_eq!(flags & (1 << 10 | 1 << 8), 1 << 10 | 1 << 8, "reset register, 32-bit timer");
    // Space, width, offset, access size, address.
    assert_eq!(&fadt[116..128], &[1, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fadt[128], 6);
    assert_eq!(&fadt[148..160], &[1, 32, 0, 2, 0, 6, 0, 0, 0, 0, 0, 0]);
    assert_eq!(&fadt[172..184], &[1, 16, 0, 2, 4, 6, 0, 0, 0, 0, 0, 0]);
    assert_eq!(&fadt[208..220], &[1, 32, 0, 3, 8, 6, 0, 0, 0, 0, 0, 0]);
    assert_eq!(number(fadt, 40, 4), number(fadt, 140, 8), "both addresses of the DSDT");
    assert_eq!(number(fadt, 36, 4) % 64, 0, "the FACS is aligned");
}

#[test]
fn the_madt_lists_processors_and_interrupts() {
    let segment = made(3, 5, GIB);
    let madt = find(&segment, "APIC");
    assert_eq!((madt[8], number(madt, 36, 4), number(madt, 40, 4)), (5, 0xfee0_0000, 1));
    let entries = madt_entries(madt);
    let processors: Vec<_> = entries.iter().filter(|(kind, _)| *kind == 0).map(|(_, e)| *e).collect();
    for (id, entry) in (0u8..).zip(&processors) {
        let flags = if id < 3 { 1 } else { 2 };
        assert_eq!(**entry, [0, 8, id, id, flags, 0, 0, 0]);
    }
    assert_eq!(processors.len(), 5);
    let rest: Vec<_> = entries.iter().filter(|(kind, _)| *kind != 0).map(|(_, e)| e.to_vec()).collect();
    let expected = [
        vec![1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
        vec![2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
        vec![2, 10, 0, 9, 9, 0, 0, 0, 0b1101, 0],
        vec![4, 6, 0xff, 0, 0, 1],
    ];
    assert_eq!(rest, expected);
}

#[test]
fn the_mcfg_tells_the_configuration_space() {
    let segment = made(1, 1, GIB);
    let mcfg = find(&segment, "MCFG");
    // Segment 0, bus 0 alone.
    assert_eq!(mcfg[44..], [0, 0, 0, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn impossible_processor_counts_are_refused() {
    let layout = Layout::new(GIB, 40).unwrap();
    for (cpus, cpus_max) in [(0, 1), (2, 1), (1, 255), (255, 255)] {
        let e = tables(&AcpiSpec { cpus, cpus_max }, &layout).unwrap_err();
        assert_eq!(e, BootError::CpuCount { cpus, cpus_max });
        assert!(e.to_string().contains("1 to 254 processors"), "{e}");
    }
}

/// ACPICA's compiler reads our DSDT and finds in it what was meant. Skipped, with a word, where it is not installed
/// (Debian: acpica-tools).
#[test]
fn acpica_reads_the_dsdt() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("skipped: iasl is not installed");
        return;
    }
    let dir = std::env::temp_dir().join(format!("umbra-boot-iasl-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let segment = made(2, 4, 6 * GIB);
    for (name, bytes) in walk(&segment) {
        std::fs::write(dir.join(format!("{name}.dat")), bytes).unwrap();
        let out =
            Command::new("iasl").current_dir(&dir).args(["-d", &format!("{name}.dat")]).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() && !text.contains("rror"), "{name}: {text}");
    }
    let out = Command::new("iasl").current_dir(&dir).arg("DSDT.dsl").output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success() && text.contains("0 Errors, 0 Warnings"), "{text}");
    let source = std::fs::read_to_string(dir.join("DSDT.dsl")).unwrap();
    for expected in [
        "Device (PCI0)",
        "EisaId (\"PNP0A08\")",
        "0xE0000000,         // Address Base",
        "Method (_OSC, 4, Serialized)",
        "Name (\\_S5, Package (0x04)",
        "Device (COM1)",
        "\"QEMU0001\"",
    ] {
        assert!(source.contains(expected), "{expected} is missing in\n{source}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
