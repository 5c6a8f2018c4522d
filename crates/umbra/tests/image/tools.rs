//! The two tools, each with a folder of its own.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Seconds that a command may take, and until it is killed.
const LIMIT: &str = "60";

/// What a command did.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub output: String,
    pub errors: String,
}

/// A tool called `qemu-img`, and the folder that it runs in.
pub struct Tool {
    pub name: &'static str,
    pub program: PathBuf,
    pub folder: PathBuf,
}

impl Tool {
    fn new(name: &'static str, program: &Path) -> Tool {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("umbra-image-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let link = folder.join("qemu-img");
        symlink(program, &link).unwrap();
        Tool { name, program: link, folder }
    }

    /// Ours.
    pub fn ours() -> Tool {
        Tool::new("umbra", Path::new(env!("CARGO_BIN_EXE_umbra")))
    }

    /// A file's path.
    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Writes a file.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.folder.join(name), bytes).unwrap();
    }

    /// Runs a command line.
    pub fn run(&self, words: &[&str]) -> Done {
        let output = Command::new("timeout")
            .args(["-k", "5", LIMIT, "qemu-img"])
            .args(words)
            .current_dir(&self.folder)
            .env("PATH", format!("{}:/usr/bin:/bin", self.folder.display()))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Done {
            code: output.status.code().unwrap_or(-1),
            output: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command line that has to succeed; its output.
    pub fn succeed(&self, words: &[&str]) -> String {
        let done = self.run(words);
        assert_eq!(done.code, 0, "{} {words:?}: {done:?}", self.name);
        done.output
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Ours and theirs.
pub struct Pair {
    pub ours: Tool,
    pub theirs: Tool,
}

impl Pair {
    /// `None` where there is no `qemu-img` 10.
    pub fn new() -> Option<Pair> {
        let Some(theirs) = reference() else {
            eprintln!("not compared: there is no qemu-img 10 here; `cargo xtask deps` unpacks it");
            return None;
        };
        Some(Pair { ours: Tool::ours(), theirs: Tool::new("qemu-img", &theirs) })
    }

    /// Writes a file for both.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        self.ours.write(name, bytes);
        self.theirs.write(name, bytes);
    }
}

/// The real `qemu-img`.
fn reference() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_BIN_EXE_umbra")).ancestors().nth(2)?;
    let cache = std::env::var_os("UMBRA_TEST_CACHE").map_or(target.join("test-cache"), PathBuf::from);
    let named = std::env::var_os("UMBRA_QEMU_IMG").map(PathBuf::from);
    let places = [named, Some(cache.join("bin/qemu-img")), Some("/usr/bin/qemu-img".into())];
    places.into_iter().flatten().find(|path| {
        let output = Command::new(path).arg("--version").output();
        output.is_ok_and(|output| output.stdout.starts_with(b"qemu-img version 10."))
    })
}

/// Bytes in which data, repeated bytes and holes of several lengths change.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut word = 0x2545_f491_4f6c_dd1du64;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        let run = 512 << (word % 9);
        match word >> 60 {
            0..6 => bytes.resize(bytes.len() + run, 0),
            6..8 => bytes.resize(bytes.len() + run, word as u8),
            _ => {
                let mut noise = word;
                for _ in 0..run / 8 {
                    noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    bytes.extend_from_slice(&noise.to_be_bytes());
                }
            }
        }
    }
    bytes.truncate(len);
    bytes
}

/// Facts that differ from image to image, or by where a file system puts it.
const CHANGING: [&str; 13] = [
    "actual-size",
    "date-sec",
    "date-nsec",
    "cid",
    "parent-cid",
    "uuid",
    "iters",
    "master-key-iters",
    "image-end-offset",
    "disk size",
    "file length",
    "parent cid",
    "master key iters",
];

/// Output without them.
pub fn plain(output: &str) -> String {
    if let Ok(mut value) = serde_json::from_str::<serde_json::Value>(output) {
        strip(&mut value);
        return value.to_string();
    }
    let is_changing = |line: &str| {
        let name = line.trim().split(':').next().unwrap_or_default();
        CHANGING.contains(&name) || name == "Image end offset" || name.starts_with("Run completed in ")
    };
    let is_date = |word: &str| {
        word.len() == 10 && word.matches('-').count() == 2
            || word.len() == 8 && word.matches(':').count() == 2
    };
    let mut text = String::new();
    for line in output.lines().filter(|line| !is_changing(line)) {
        match line.split_whitespace().any(is_date) {
            true => {
                line.split_whitespace().filter(|word| !is_date(word)).for_each(|word| text.push_str(word))
            }
            false => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

fn strip(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Array(list) => list.iter_mut().for_each(strip),
        serde_json::Value::Object(members) => {
            CHANGING.iter().for_each(|name| {
                members.remove(*name);
            });
            // The length of a file: images of one content may end at another place.
            if members.get("format").is_some_and(|format| format == "file") {
                members.remove("virtual-size");
            }
            members.values_mut().for_each(strip);
        }
        _ => {}
    }
}
