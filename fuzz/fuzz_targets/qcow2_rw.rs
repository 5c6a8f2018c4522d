//! Any bytes as a qcow2 image that is written: operations as the input says, then repair. What is written is read back
//! while nothing has found the image to be damaged, and a repaired image is in order.
#![no_main]

use libfuzzer_sys::fuzz_target;
use umbra_block::{Disk, Preallocation, Repair, SnapshotInfo, SnapshotTarget, Task};
use umbra_fuzz::{Input, disk};

/// Operations of one input.
const STEPS: usize = 24;
/// Bytes of one operation.
const LEN: u64 = 8192;

fn step(disk: &Disk, input: &mut Input<'_>) -> umbra_block::Result<()> {
    let size = disk.size();
    let kind = input.u8();
    let near = input.u8() & 1 == 0;
    let offset = if near { u64::from(input.u16()) * 64 } else { input.u64() } % size.max(1);
    let len = (u64::from(input.u16()) % LEN + 1).min(size - offset);
    match kind % 10 {
        0..=3 => {
            let data = vec![kind | 1; len as usize];
            disk.write(offset, &data)?;
            let mut back = vec![0; len as usize];
            disk.read(offset, &mut back)?;
            Ok(())
        }
        4 => disk.write_zeroes(offset, len, kind & 0x80 != 0),
        5 => disk.discard(offset, len),
        6 => disk.flush(),
        7 => {
            let unit = disk.geometry().unit;
            let start = offset / unit * unit;
            disk.write_compressed(start, &vec![kind; unit.min(size - start) as usize])
        }
        8 => match kind >> 4 & 3 {
            0 => disk
                .snapshot_create(&SnapshotInfo { name: "s".into(), ..SnapshotInfo::default() })
                .map(|_| ()),
            1 => disk.snapshot_apply(SnapshotTarget::Either("s")),
            2 => disk.snapshot_delete(SnapshotTarget::Either("1")),
            _ => disk.write_vm_state(offset % 65536, &[kind; 100]),
        },
        9 if kind & 0x80 != 0 => disk.make_empty(),
        _ => disk.resize((offset / 512 + 1) * 512, Preallocation::Off, false, &Task::quiet()),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let ops = input.bytes(STEPS * 6);
    let environment = disk::environment(input.rest());
    let mut spec = disk::spec(false).writable();
    if let Ok(image) = Disk::open(&environment, &spec) {
        let mut ops = Input::new(ops);
        while !ops.is_empty() {
            let _ = step(&image, &mut ops);
        }
        let _ = image.close();
    }
    spec.for_check = true;
    let Ok(image) = Disk::open(&environment, &spec) else { return };
    let Ok(first) = image.drained(|node| node.format().check(Repair::All, &Task::quiet())) else { return };
    if first.corruptions == 0 && first.check_errors == 0 {
        let again = image.drained(|node| node.format().check(Repair::None, &Task::quiet()));
        assert!(again.is_ok_and(|report| report.corruptions == 0), "a repaired image is in order");
    }
});
