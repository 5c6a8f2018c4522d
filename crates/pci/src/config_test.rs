use umbra_device::DeviceError;

use crate::{Bar, BarRegion, BarSpace, Command, ConfigSpace, Identity, PciError};

fn space() -> ConfigSpace {
    ConfigSpace::new(Identity { vendor: 0x1234, device: 0x5678, class: [1, 2, 3], ..Identity::default() })
}

fn read(config: &ConfigSpace, offset: u16) -> u32 {
    let mut data = [0; 4];
    config.read(offset, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn the_header_is_where_the_specification_has_it() {
    let mut config = ConfigSpace::new(Identity {
        vendor: 0x1111,
        device: 0x2222,
        revision: 0x33,
        class: [0x44, 0x55, 0x66],
        subsystem_vendor: 0x7777,
        subsystem: 0x8888,
    });
    assert_eq!(read(&config, 0x00), 0x2222_1111);
    assert_eq!(read(&config, 0x04), 0);
    assert_eq!(read(&config, 0x08), 0x4455_6633);
    assert_eq!(read(&config, 0x0c), 0);
    assert_eq!(read(&config, 0x2c), 0x8888_7777);
    config.write(0, &[0xff; 256]);
    assert_eq!(read(&config, 0x00), 0x2222_1111);
    assert_eq!(
        read(&config, 0x04),
        0x0544,
        "bus master, parity, SERR, interrupt disable; no spaces without bases"
    );
    assert_eq!(read(&config, 0x08), 0x4455_6633);
    assert_eq!(read(&config, 0x0c), 0xff, "cache line size");
    assert_eq!(read(&config, 0x10), 0);
    assert_eq!(read(&config, 0x2c), 0x8888_7777);
    assert_eq!(read(&config, 0x30), 0, "no expansion ROM");
    assert_eq!(read(&config, 0x3c), 0xff, "interrupt line");
    assert_eq!(read(&config, 0x40), 0);
    config.reset();
    assert_eq!((config.command(), read(&config, 0x3c)), (Command::empty(), 0));
}

#[test]
fn base_addresses_tell_their_size() {
    for (bar, first, second) in [
        (Bar::Io { len: 4 }, 0xfffd, 0),
        (Bar::Io { len: 256 }, 0xff01, 0),
        (Bar::Memory32 { len: 16 }, 0xffff_fff0, 0),
        (Bar::Memory32 { len: 1 << 31 }, 0x8000_0000, 0),
        (Bar::Memory64 { len: 16, prefetchable: false }, 0xffff_fff4, 0xffff_ffff),
        (Bar::Memory64 { len: 1 << 20, prefetchable: true }, 0xfff0_000c, 0xffff_ffff),
        (Bar::Memory64 { len: 1 << 47, prefetchable: true }, 0x0000_000c, 0xffff_8000),
    ] {
        let mut config = space().with_bar(4, bar).unwrap();
        config.write(0x20, &[0xff; 8]);
        assert_eq!((read(&config, 0x20), read(&config, 0x24)), (first, second), "{bar:?}");
        config.write(0x20, &[0; 8]);
        assert_eq!(read(&config, 0x24), 0);
        assert_eq!(read(&config, 0x20), bar.flags(), "{bar:?}");
    }
}

#[test]
fn base_addresses_decode_when_they_are_enabled() {
    let mut config = space()
        .with_bar(0, Bar::Io { len: 32 })
        .unwrap()
        .with_bar(2, Bar::Memory64 { len: 0x1000, prefetchable: false })
        .unwrap();
    config.write(0x10, &0xffff_c02f_u32.to_le_bytes());
    config.write(0x18, &[0xff; 8]);
    assert_eq!(config.decoded().count(), 0);
    config.write(4, &[1, 0]);
    let io = BarRegion { space: BarSpace::Io, base: 0xc020, len: 32 };
    assert_eq!(config.decoded().collect::<Vec<_>>(), [(0, io)]);
    config.write(4, &[3, 0]);
    let memory = BarRegion { space: BarSpace::Memory, base: 0xffff_ffff_ffff_f000, len: 0x1000 };
    assert_eq!(config.decoded().collect::<Vec<_>>(), [(0, io), (2, memory)]);
    assert_eq!(memory.last(), u64::MAX, "the end of the address space overflows nothing");
    assert!(memory.overlaps(&memory));
    assert!(!memory.overlaps(&BarRegion { space: BarSpace::Io, ..memory }));
}

#[test]
fn impossible_base_addresses_are_refused() {
    for (index, bar) in [
        (0, Bar::Io { len: 2 }),
        (0, Bar::Io { len: 512 }),
        (0, Bar::Memory32 { len: 8 }),
        (0, Bar::Memory32 { len: 48 }),
        (0, Bar::Memory64 { len: 1 << 48, prefetchable: false }),
        (5, Bar::Memory64 { len: 0x1000, prefetchable: false }),
        (6, Bar::Io { len: 4 }),
        (255, Bar::Io { len: 4 }),
    ] {
        assert_eq!(space().with_bar(index, bar).unwrap_err(), PciError::Bar { index, bar });
    }
    let wide = Bar::Memory64 { len: 0x1000, prefetchable: false };
    let config = space().with_bar(2, wide).unwrap();
    for (index, bar) in [(2, Bar::Io { len: 4 }), (3, Bar::Io { len: 4 }), (1, wide)] {
        assert!(config.clone().with_bar(index, bar).is_err(), "{index}");
    }
    config.with_bar(4, wide).unwrap();
}

#[test]
fn capabilities_are_a_list() {
    let mut config = space()
        .with_capability(0x11, [1, 2, 3], [0xff, 0, 0])
        .unwrap()
        .with_capability(0x05, [0; 2], [0; 2])
        .unwrap();
    assert_eq!(read(&config, 0x04) >> 16, 0x10, "the status register says that there are some");
    assert_eq!(read(&config, 0x34), 0x40);
    assert_eq!(read(&config, 0x40), 0x0201_4811);
    assert_eq!(read(&config, 0x44), 3);
    assert_eq!(read(&config, 0x48), 0x05, "the last one points nowhere");
    config.write(0x40, &[0xaa; 5]);
    assert_eq!(read(&config, 0x40), 0x02aa_4811);
    let full = config.with_capability(0x09, [0; 178], [0; 178]).unwrap();
    assert_eq!(
        full.with_capability(0x09, [0; 2], [0; 2]).unwrap_err(),
        PciError::CapabilityTooLong { len: 4 }
    );
    assert!(space().with_capability(0x09, [0; 191], [0; 191]).is_err());
}

#[test]
fn any_offset_and_length_can_be_read_and_written() {
    let mut config = space();
    for offset in (0..300).chain([0xfff, u16::MAX]) {
        for len in 0..9 {
            let mut data = vec![0xa5; len];
            config.read(offset, &mut data);
            assert!(offset < 256 || data.iter().all(|&b| b == 0xff));
            config.write(offset, &data);
        }
    }
}

#[test]
fn saved_bytes_must_be_of_the_same_function() {
    let mut config = space().with_bar(0, Bar::Memory32 { len: 0x1000 }).unwrap();
    config.write(0, &[0xff; 256]);
    let good = config.save();
    let mut other = space().with_bar(0, Bar::Memory32 { len: 0x1000 }).unwrap();
    other.load("f", &good).unwrap();
    assert_eq!(other.save(), good);
    let refusal = Err(DeviceError::Impossible { id: "f".into(), what: "configuration space" });
    let mut larger = space().with_bar(0, Bar::Memory32 { len: 0x2000 }).unwrap();
    let before = larger.save();
    assert_eq!(larger.load("f", &good), refusal, "another size");
    for len in [0, 255, 257, 4096] {
        let mut bytes = good.clone();
        bytes.resize(len, 0);
        assert_eq!(larger.load("f", &bytes), refusal, "{len} bytes");
    }
    assert_eq!(larger.save(), before);
    let mut renamed = good.clone();
    renamed[0] ^= 1;
    assert_eq!(other.load("f", &renamed), refusal, "another vendor");
}
