//! `bench image`: `umbra image` beside `qemu-img`, in the same words, on the same files.
//!
//! The two take turns; figures are medians. Memory is the greatest resident size that the kernel saw of the process.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::{load, median};
use crate::cache::Scratch;
use crate::{qemu_img, umbra};

/// A command that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(900);

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct ImageOptions {
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
    /// Runs of each side
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Only figures whose name contains this
    #[arg(long)]
    pub only: Option<String>,
    /// Size of the disk that is copied, in MiB; half of it is data
    #[arg(long, default_value_t = 2048)]
    pub size: u64,
}

/// The whole report.
#[derive(Debug, Serialize)]
pub struct ImageReport {
    /// Load averages before and after.
    pub load: [String; 2],
    /// One entry a figure.
    pub figures: Vec<Figure>,
}

/// One figure.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// What was done.
    pub what: String,
    /// Median seconds of Umbra.
    pub umbra: f64,
    /// Median seconds of qemu-img.
    pub qemu: f64,
    /// The second over the first.
    pub ratio: f64,
    /// What the ratio must reach.
    pub must: f64,
    /// Greatest resident size of Umbra, in KiB.
    pub umbra_kib: u64,
    /// The same of qemu-img.
    pub qemu_kib: u64,
    /// Length of what Umbra wrote, where that is compared.
    pub umbra_bytes: Option<u64>,
    /// The same of qemu-img.
    pub qemu_bytes: Option<u64>,
}

impl Figure {
    /// Whether everything is as it must be.
    pub fn is_good(&self) -> bool {
        let sizes = self.umbra_bytes.zip(self.qemu_bytes);
        self.ratio >= self.must
            && self.umbra_kib <= self.qemu_kib
            && sizes.is_none_or(|(ours, theirs)| ours <= theirs)
    }
}

impl ImageReport {
    /// Prints one line a figure.
    pub fn print(&self) {
        println!("load before {}, after {}", self.load[0], self.load[1]);
        for figure in &self.figures {
            let sizes = match figure.umbra_bytes.zip(figure.qemu_bytes) {
                Some((ours, theirs)) => format!(", {ours} bytes ({theirs})"),
                None => String::new(),
            };
            println!(
                "image {:34} {:8.3} s, qemu-img {:8.3} s: {:6.2} x (must {:.1}), {:6.1} MiB ({:.1}){sizes}{}",
                figure.what,
                figure.umbra,
                figure.qemu,
                figure.ratio,
                figure.must,
                figure.umbra_kib as f64 / 1024.0,
                figure.qemu_kib as f64 / 1024.0,
                if figure.is_good() { "" } else { "  MISSED" }
            );
        }
    }
}

/// One thing to measure. `{out}` in its words is a file of the run's own, removed before each; `before` is not timed.
struct Case {
    what: &'static str,
    must: f64,
    before: &'static str,
    words: &'static str,
    sizes: bool,
}

const fn case(what: &'static str, must: f64, before: &'static str, words: &'static str) -> Case {
    Case { what, must, before, words, sizes: false }
}

const SECRET: &str = "--object secret,id=s,data=abc";

/// Requests of 4 KiB that follow each other 1 MiB and 4 KiB apart, around the disk: each page is met once before one is
/// met again, and none follows the one before it. That is what the tool has for random ones.
const CASES: [Case; 19] = [
    case("convert raw to qcow2", 1.3, "", "convert -f raw -O qcow2 source.raw {out}"),
    case("convert qcow2 to raw", 1.3, "", "convert -f qcow2 -O raw source.qcow2 {out}"),
    Case {
        sizes: true,
        ..case("convert compressed zlib", 2.5, "", "convert -c -W -m 16 -f raw -O qcow2 text.raw {out}")
    },
    Case {
        sizes: true,
        ..case(
            "convert compressed zstd",
            1.3,
            "",
            "convert -c -W -m 16 -f raw -O qcow2 -o compression_type=zstd text.raw {out}",
        )
    },
    case("read compressed zlib", 1.0, "", "convert -f qcow2 -O raw packed.qcow2 {out}"),
    case("snapshot create, 8 GiB", 2.0, "", "snapshot -c one full-{tool}.qcow2"),
    case(
        "snapshot delete, 8 GiB",
        2.0,
        "snapshot -c two full-{tool}.qcow2",
        "snapshot -d two full-{tool}.qcow2",
    ),
    case("check, 8 GiB", 2.0, "", "check -q full.qcow2"),
    case(
        "LUKS write",
        4.0,
        "",
        "convert {secret} -f raw -O luks -o key-secret=s,iter-time=10 half.raw {out}",
    ),
    // What is read goes nowhere, or the target's file would be what is measured.
    case(
        "LUKS read",
        4.0,
        "",
        "compare -q {secret} --image-opts driver=luks,key-secret=s,file.filename=half.luks driver=raw,file.filename=half.raw",
    ),
    case(
        "convert LUKS to raw",
        1.3,
        "",
        "convert {secret} --image-opts driver=luks,key-secret=s,file.filename=half.luks -O raw {out}",
    ),
    case("compare sparse 1 TiB", 2.0, "", "compare -q -f qcow2 -F qcow2 wide.qcow2 wide2.qcow2"),
    case("map sparse 1 TiB", 2.0, "", "map -f qcow2 --output=json wide.qcow2"),
    case("compare equal data", 1.0, "", "compare -q -f raw -F qcow2 source.raw source.qcow2"),
    case("map sparse 1 TiB raw", 2.0, "", "map -f raw --output=json wide.raw"),
    case("4k reads raw, depth 64", 1.2, "", "bench -c 200000 -d 64 -i io_uring -S 1052672 -f raw random.raw"),
    case(
        "4k reads qcow2, depth 64",
        1.2,
        "",
        "bench -c 200000 -d 64 -i io_uring -S 1052672 -f qcow2 random.qcow2",
    ),
    case(
        "4k writes raw, depth 64",
        1.2,
        "",
        "bench -w -c 200000 -d 64 -i io_uring -S 1052672 -f raw random.raw",
    ),
    case(
        "4k writes qcow2, depth 64",
        1.2,
        "",
        "bench -w -c 200000 -d 64 -i io_uring -S 1052672 -f qcow2 random.qcow2",
    ),
];

/// A tool under the name `qemu-img`.
struct Tool {
    name: &'static str,
    program: PathBuf,
}

/// Measures everything.
pub fn run(options: &ImageOptions) -> Result<ImageReport> {
    let scratch = Scratch::new()?;
    let folder = scratch.path();
    let theirs = Tool { name: "qemu", program: qemu_img::find()? };
    let link = folder.join("qemu-img");
    symlink(umbra::build()?, &link)?;
    let ours = Tool { name: "umbra", program: link };
    let before = load();
    prepare(&theirs, folder, options.size)?;
    let mut figures = Vec::new();
    for case in
        CASES.iter().filter(|case| options.only.as_ref().is_none_or(|only| case.what.contains(only.as_str())))
    {
        figures.push(measure(case, &ours, &theirs, folder, options.rounds.max(1))?);
    }
    Ok(ImageReport { load: [before, load()], figures })
}

/// Makes the files that are read.
fn prepare(tool: &Tool, folder: &Path, size: u64) -> Result<()> {
    let half = size / 2;
    write_data(&folder.join("source.raw"), size, half, false)?;
    write_data(&folder.join("text.raw"), size / 4, size / 4, true)?;
    write_data(&folder.join("half.raw"), size / 4, size / 4, false)?;
    write_data(&folder.join("random.raw"), size / 4, size / 4, false)?;
    let lines = [
        "convert -f raw -O qcow2 source.raw source.qcow2",
        "convert -c -W -f raw -O qcow2 text.raw packed.qcow2",
        "create -q -f qcow2 -o preallocation=metadata full.qcow2 8G",
        "create -q -f qcow2 -o preallocation=metadata full-umbra.qcow2 8G",
        "create -q -f qcow2 -o preallocation=metadata full-qemu.qcow2 8G",
        "convert {secret} -f raw -O luks -o key-secret=s,iter-time=10 half.raw half.luks",
        "convert -f raw -O qcow2 random.raw random.qcow2",
        "create -q -f qcow2 wide.qcow2 1T",
        "create -q -f qcow2 wide2.qcow2 1T",
        "create -q -f raw wide.raw 1T",
    ];
    for line in lines {
        let mut child = start(tool, folder, line, "")?;
        if !wait(&mut child)?.0 {
            bail!("qemu-img {line} failed");
        }
    }
    Ok(())
}

/// Writes `data` MiB in pieces over `size` MiB: noise, or text that compresses to about a third.
fn write_data(path: &Path, size: u64, data: u64, text: bool) -> Result<()> {
    use std::os::unix::fs::FileExt;
    const PIECE: u64 = 1 << 20;
    let file = std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    file.set_len(size * PIECE)?;
    let stride = (size / data.max(1)).max(1);
    let mut word = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(PIECE as usize);
    for number in 0..data {
        bytes.clear();
        while bytes.len() < PIECE as usize {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            match text {
                true => bytes.extend_from_slice(
                    format!("{:05} of the words are {:x}; ", word % 10_000, word & 0xffff).as_bytes(),
                ),
                false => bytes.extend_from_slice(&word.to_le_bytes()),
            }
        }
        bytes.truncate(PIECE as usize);
        file.write_all_at(&bytes, number * stride * PIECE)?;
    }
    Ok(())
}

fn start(tool: &Tool, folder: &Path, line: &str, out: &str) -> Result<Child> {
    let line = line.replace("{out}", out).replace("{tool}", tool.name).replace("{secret}", SECRET);
    Command::new(&tool.program)
        .args(line.split_whitespace())
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", tool.program.display()))
}

/// Waits for the end: whether it was a success, and the greatest resident size in KiB.
fn wait(child: &mut Child) -> Result<(bool, u64)> {
    let began = Instant::now();
    let mut peak = 0;
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        peak = peak.max(now.unwrap_or(0));
        if let Some(status) = child.try_wait()? {
            return Ok((status.success(), peak));
        }
        if began.elapsed() > LIMIT {
            child.kill()?;
            bail!("a command did not end within {} s", LIMIT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn measure(case: &Case, ours: &Tool, theirs: &Tool, folder: &Path, rounds: usize) -> Result<Figure> {
    let mut seconds = [Vec::new(), Vec::new()];
    let mut peaks = [0; 2];
    let mut sizes = [None; 2];
    for round in 0..rounds {
        // Who comes second finds warmer caches, so they take turns at that too.
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for side in order {
            let tool = [ours, theirs][side];
            let out = folder.join("out");
            if out.exists() {
                std::fs::remove_file(&out)?;
            }
            if !case.before.is_empty() && !wait(&mut start(tool, folder, case.before, "out")?)?.0 {
                bail!("{}: {} failed before the figure", case.what, tool.name);
            }
            // What was written before is not written back on somebody else's time.
            let _ = Command::new("sync").status().context("cannot run sync")?;
            let began = Instant::now();
            let (good, peak) = wait(&mut start(tool, folder, case.words, "out")?)?;
            seconds[side].push(began.elapsed().as_secs_f64());
            if !good {
                bail!("{}: {} failed", case.what, tool.name);
            }
            peaks[side] = peak.max(peaks[side]);
            if case.sizes {
                sizes[side] = Some(std::fs::metadata(&out)?.len());
            }
        }
    }
    let [umbra, qemu] = seconds.map(|list| median(&list).unwrap_or(f64::NAN));
    Ok(Figure {
        what: case.what.to_owned(),
        umbra,
        qemu,
        ratio: qemu / umbra,
        must: case.must,
        umbra_kib: peaks[0],
        qemu_kib: peaks[1],
        umbra_bytes: sizes[0],
        qemu_bytes: sizes[1],
    })
}
