//! `umbra image mount`: a disk as a file. Needs `/dev/fuse` and the right to mount (root, or fusermount3); where one is
//! missing the tests say so.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::process::{Pid, Signal, kill_process};

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("umbra-mount-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn umbra(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_umbra"));
    command.arg("image").args(words);
    command
}

fn succeed(words: &[&str]) {
    let output = umbra(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A mount under way.
struct Mount(Child);

impl Mount {
    /// Waits until it is mounted. `None` where this computer cannot mount.
    fn start(words: &[&str]) -> Option<Mount> {
        if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
            eprintln!("skipped: /dev/fuse cannot be opened here ({error}), so nothing was mounted");
            return None;
        }
        let mut child = umbra(&[&["mount"], words].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            let output = child.wait_with_output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(errors.contains("ermi"), "it neither mounts nor is refused: {errors}");
            eprintln!("skipped: this user may not mount: {errors}");
            return None;
        }
        assert!(line.contains("is mounted at"), "{line}");
        Some(Mount(child))
    }

    fn interrupt(&mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.0), Signal::INT).unwrap();
        self.0.wait().unwrap()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Already gone where the test has ended well.
        let _ = kill_process(Pid::from_child(&self.0), Signal::INT);
        let _ = self.0.wait();
    }
}

#[test]
fn a_mounted_disk_is_read_and_written() {
    let folder = Folder::new("write");
    let (image, point, expected) = (folder.path("image"), folder.path("point"), folder.path("expected"));
    succeed(&["create", "-q", "-f", "qcow2", &image, "8M"]);
    let Some(mut mount) = Mount::start(&["-f", "qcow2", &image, &point]) else { return };
    let file = File::options().read(true).write(true).open(&point).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 8 << 20);
    let noise: Vec<u8> = (0..300_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    file.write_all_at(&noise, 1_000_001).unwrap();
    file.write_all_at(&[5; 4096], (8 << 20) - 4096).unwrap();
    assert!(file.write_at(&[1], 8 << 20).is_err(), "behind the end");
    rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 1 << 20, 65536)
        .unwrap();
    file.sync_all().unwrap();
    let hole = rustix::fs::seek(&file, SeekFrom::Hole(1_000_001)).unwrap();
    assert_eq!((hole, rustix::fs::seek(&file, SeekFrom::Data(hole)).unwrap()), (1 << 20, (1 << 20) + 65536));
    let mut back = vec![0; noise.len()];
    file.read_exact_at(&mut back, 1_000_001).unwrap();
    let mut whole = vec![0; 8 << 20];
    whole[1_000_001..1_000_001 + noise.len()].copy_from_slice(&noise);
    whole[1 << 20..(1 << 20) + 65536].fill(0);
    whole[(8 << 20) - 4096..].fill(5);
    assert!(back == whole[1_000_001..1_000_001 + noise.len()]);
    // The image is in use, and says by whom.
    let refused = umbra(&["info", &image]).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("lock"));
    drop(file);
    assert!(mount.interrupt().success());
    assert!(fs::metadata(&point).is_err(), "the mount point was made for the mount");
    fs::write(&expected, &whole).unwrap();
    succeed(&["compare", "-q", "-f", "raw", "-F", "qcow2", &expected, &image]);
    succeed(&["check", "-q", &image]);
}

#[test]
fn a_disk_that_is_only_read_stays_as_it_is() {
    let folder = Folder::new("read");
    let (image, point) = (folder.path("image"), folder.path("point"));
    fs::write(&image, [3; 65536]).unwrap();
    fs::write(&point, "").unwrap();
    let Some(mut mount) = Mount::start(&["-r", "-f", "raw", &image, &point]) else { return };
    assert!(fs::read(&point).unwrap() == [3; 65536]);
    assert!(File::options().write(true).open(&point).is_err());
    // Somebody still has it open: it is served until that ends.
    let file = File::open(&point).unwrap();
    kill_process(Pid::from_child(&mount.0), Signal::INT).unwrap();
    while fs::metadata(&point).unwrap().len() != 0 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let mut bytes = [0; 512];
    file.read_exact_at(&mut bytes, 60_000).unwrap();
    assert_eq!(bytes, [3; 512]);
    drop(file);
    assert!(mount.0.wait().unwrap().success());
    assert!(fs::metadata(&point).unwrap().is_file(), "it was there before");
}

#[test]
fn what_cannot_be_a_mount_point_is_told() {
    let folder = Folder::new("wrong");
    let image = folder.path("image");
    fs::write(&image, [0; 512]).unwrap();
    for (point, said) in [
        (folder.path(""), "no file"),
        (image.clone(), "file of the image"),
        (folder.path("no/where"), "No such file"),
    ] {
        let output = umbra(&["mount", "-f", "raw", &image, &point]).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && errors.contains(said), "{point}: {errors}");
    }
}
