use crate::error::BootError;
use crate::layout::*;

#[test]
fn small_memory_is_one_range() {
    let l = Layout::new(128 * MIB, 40).unwrap();
    assert_eq!(l.ram_low(), 0..128 * MIB);
    assert_eq!(l.ram_high(), None);
}

#[test]
fn three_gib_is_the_edge() {
    assert_eq!(Layout::new(3 * GIB, 40).unwrap().ram_high(), None);
    let l = Layout::new(3 * GIB + PAGE, 40).unwrap();
    assert_eq!(l.ram().collect::<Vec<_>>(), [0..3 * GIB, 4 * GIB..4 * GIB + PAGE]);
}

#[test]
fn nothing_overlaps_at_any_width() {
    for bits in 33..=52u8 {
        for ram in [64 * MIB, GIB, 3 * GIB, 6 * GIB, 64 * GIB, 900 * GIB] {
            let Ok(l) = Layout::new(ram, bits) else { continue };
            let mut all: Vec<_> = l.ram().collect();
            all.extend([
                PCI_WINDOW_32_LOW,
                PCI_ECAM,
                PCI_WINDOW_32_HIGH,
                IOAPIC..IOAPIC + PAGE,
                HPET..HPET + PAGE,
                TPM..TPM + 5 * PAGE,
                LAPIC..LAPIC + PAGE,
                KVM_PAGES,
                HYPERTRANSPORT_HOLE,
                l.memory_hotplug(),
                l.pci_window_64(),
            ]);
            all.retain(|r| r.start < r.end);
            all.sort_by_key(|r| r.start);
            for pair in all.windows(2) {
                assert!(pair[0].end <= pair[1].start, "{bits} bits, {ram} bytes: {:x?}", pair);
            }
            assert!(l.pci_window_64().end <= 1 << bits, "{bits}");
        }
    }
}

#[test]
fn there_is_room_for_a_tebibyte() {
    for bits in [42, 46, 48, 52] {
        let l = Layout::new(64 * GIB, bits).unwrap();
        for r in [l.memory_hotplug(), l.pci_window_64()] {
            assert!(r.end - r.start >= 1 << 40, "{bits}: {r:x?}");
        }
    }
    let narrow = Layout::new(64 * GIB, 40).unwrap();
    assert!(narrow.pci_window_64().end - narrow.pci_window_64().start >= 400 * GIB);
    assert!(narrow.memory_hotplug().end - narrow.memory_hotplug().start >= 400 * GIB);
}

#[test]
fn hosts_wider_than_46_bits_agree() {
    let a = Layout::new(GIB, 46).unwrap();
    let b = Layout::new(GIB, 52).unwrap();
    assert_eq!(a, b);
}

#[test]
fn impossible_sizes_are_named() {
    for (ram, bits) in [(0, 40), (MIB, 40), (GIB + 1, 40), (64 * GIB, 36), (2000 * GIB, 46), (!4095, 52)] {
        let e = Layout::new(ram, bits).unwrap_err();
        assert!(matches!(e, BootError::MemorySize { bytes, .. } if bytes == ram), "{e}");
    }
    let message = Layout::new(64 * GIB, 36).unwrap_err().to_string();
    assert!(message.contains("31744 MiB") && message.contains("36 physical address bits"), "{message}");
}

#[test]
fn intx_pins_spread_over_four_inputs() {
    assert_eq!(
        [pci_intx_gsi(0, 0), pci_intx_gsi(0, 3), pci_intx_gsi(1, 0), pci_intx_gsi(31, 3)],
        [16, 19, 17, 18]
    );
}

#[test]
fn the_boot_data_does_not_overlap() {
    let parts = [
        GDT..GDT + 0x100,
        PVH_START_INFO..ZERO_PAGE,
        ZERO_PAGE..ZERO_PAGE + PAGE,
        ZERO_PAGE + PAGE..BOOT_STACK_TOP,
        PAGE_TABLES..PAGE_TABLES + 6 * PAGE,
        CMDLINE..CMDLINE + CMDLINE_ROOM,
        EBDA,
        ACPI_TABLES,
        SMBIOS,
    ];
    for pair in parts.windows(2) {
        assert!(pair[0].end <= pair[1].start, "{pair:x?}");
    }
    assert_eq!(SMBIOS.end, KERNEL_MIN);
}
