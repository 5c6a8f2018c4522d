//! Any bytes as a qcow2 image: opened, looked at, read, checked. It is bounded by the file's size, whatever it says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use umbra_block::{Disk, Repair, SnapshotTarget, Task};
use umbra_fuzz::disk;

/// Bytes of the disk that are read, at its start and at its end.
const READ: u64 = 1 << 20;
/// Runs of the map that are looked at.
const RUNS: usize = 2000;

fn look(disk: &Disk) {
    let size = disk.size();
    let mut bytes = vec![0; READ.min(size) as usize];
    let _ = disk.read(0, &mut bytes);
    let _ = disk.read(size - bytes.len() as u64, &mut bytes);
    let mut at = 0;
    for _ in 0..RUNS {
        if at >= size {
            break;
        }
        let Ok(status) = disk.block_status(at, size - at) else { break };
        assert!(status.len > 0 && status.len <= size - at, "a run has a length");
        at += status.len;
    }
}

fuzz_target!(|bytes: &[u8]| {
    let environment = disk::environment(bytes);
    if let Ok(image) = Disk::open(&environment, &disk::spec(true)) {
        let node = image.node();
        let _ = node.format().info();
        let _ = node.format().check(Repair::None, &Task::quiet());
        for bitmap in image.bitmaps().unwrap_or_default().iter().take(4) {
            let _ = node.format().bitmaps().map(|bitmaps| bitmaps.next_dirty(&bitmap.name, 0));
        }
    }
    let Ok(image) = Disk::open(&environment, &disk::spec(false)) else { return };
    look(&image);
    for snapshot in image.snapshots().unwrap_or_default().iter().take(3) {
        let node = image.node();
        let Some(snapshots) = node.format().snapshots() else { continue };
        let Ok(view) = snapshots.view(SnapshotTarget::Id(&snapshot.id)) else { continue };
        look(&Disk::over(umbra_block::Node::new(view, "qcow2", node.spec().clone(), None)));
    }
});
