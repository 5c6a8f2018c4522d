//! Files: with the page cache and around it, at every alignment, and behind the end.

use super::{Access, FileStorage, FileStorageSpec, LockMode, Storage, StorageExt};
use crate::test_help::Rng;

fn agrees_with_an_array(direct: bool) {
    // O_DIRECT is refused where the folder for temporary files is in memory.
    let path = std::env::current_dir().unwrap().join(format!("file-test-{direct}-{}", std::process::id()));
    std::fs::write(&path, b"").unwrap();
    let spec = FileStorageSpec { access: Access::ReadWrite, direct, lock: LockMode::Exclusive };
    let opened = FileStorage::open(&path, &spec);
    std::fs::remove_file(&path).unwrap();
    let file = match opened {
        Err(error) if direct => return eprintln!("skipped: the file system has no O_DIRECT: {error}"),
        opened => opened.unwrap(),
    };
    let mut model: Vec<u8> = Vec::new();
    let mut rng = Rng(3);
    for _ in 0..400 {
        let grain = [1, 512, 4096][rng.below(3) as usize];
        let offset = rng.below(300_000 / grain) * grain;
        let len = (1 + rng.below(60_000 / grain)) * grain;
        let at = offset as usize..(offset + len) as usize;
        match rng.below(6) {
            0..=2 => {
                let mut bytes = vec![0; len as usize];
                rng.fill(&mut bytes);
                file.write_at(offset, &bytes).unwrap();
                model.resize(model.len().max(at.end), 0);
                model[at].copy_from_slice(&bytes);
            }
            3 => {
                file.write_zeroes(offset, len, rng.below(2) == 0).unwrap();
                model.resize(model.len().max(at.end), 0);
                model[at].fill(0);
            }
            4 => {
                file.set_len(offset).unwrap();
                model.resize(offset as usize, 0);
            }
            _ => {
                let mut bytes = vec![1; len as usize];
                file.read_at(offset, &mut bytes).unwrap();
                let held = |i: usize| model.get(i).copied().unwrap_or(0);
                assert!(bytes.iter().zip(at).all(|(byte, i)| *byte == held(i)));
            }
        }
        assert_eq!(file.len().unwrap(), model.len() as u64);
    }
    assert!(file.read_vec(0, model.len()).unwrap() == model);
    let run = file.run(model.len() as u64 + 10, 100).unwrap();
    assert!(!run.data && run.len == 100, "behind the end is a hole");
}

#[test]
fn a_file_agrees_with_an_array() {
    agrees_with_an_array(false);
}

#[test]
fn around_the_page_cache_too() {
    agrees_with_an_array(true);
}
