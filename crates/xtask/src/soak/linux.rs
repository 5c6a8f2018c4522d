//! Linux guests: one task, what it must write, and a kernel log in which nothing went wrong.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::Outcome;
use super::cases::{Case, Length, Program};
use crate::bench::cpu::source;
use crate::cache;
use crate::guests::Guests;
use crate::process::Line;
use crate::root::Recipe;
use crate::umbra::Umbra;

/// The guests' own files, put into `/soak`.
const FILES: [(&str, &str); 6] = [
    ("tasks.sh", include_str!("../init/soak/tasks.sh")),
    ("work.c", include_str!("../init/soak/work.c")),
    ("great_main.c", include_str!("../init/soak/great_main.c")),
    ("work.js", include_str!("../init/soak/work.js")),
    ("Work.java", include_str!("../init/soak/Work.java")),
    ("work.pl", include_str!("../init/soak/work.pl")),
];
const AGENT: &str = include_str!("../init/soak/agent.sh");

/// For a boot on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(150);
/// For tasks that do not choose their time.
const SHORT_LIMIT: Duration = Duration::from_secs(240);
const LONG_LIMIT: Duration = Duration::from_secs(1800);
/// For the way from the task's end to that of the process.
const END_LIMIT: Duration = Duration::from_secs(60);

/// What `work.c` writes on any x86.
const WORK_C: [&str; 7] = [
    "primes 78498",
    "integers 14817817092027287677",
    "strings 234425564",
    "numbers 1.644924067 1.007512729 101.208471727 2.718146",
    "threads 3704670592 0 1",
    "processes 7596",
    "signals 64 2088960 1",
];
const WORK_JS: &str = "17984 -252887830.831 12622500 5950 584144992 9d06cf6f06bb443f true";
const WORK_JAVA: &str =
    "java 17984 830448000.000 -781351108 1500 9836099488831 9d06cf6f06bb443f 8530 -1111197950";
const WORK_PL: &str = "perl 997 33 925555 6.941782222";

/// What stress-ng says of workers that did not verify, could not run, or were in trouble.
const UNWANTED: [&str; 4] = ["fail:", "error:", "warn:", "skipp"];

/// Boots the case's guest, waits until its task has ended, and judges what it said.
pub(super) fn run(
    umbra: &Umbra,
    guests: &Guests,
    case: &Case,
    recipe: &Recipe,
    length: Length,
) -> Result<Outcome> {
    let root = recipe.prepare(AGENT, |_| Ok(()), bring_up_to_date)?;
    let kernel = guests.kernel(case.kernel.context("the case has no kernel")?)?;
    let name = case.program.name();
    let words = format!(
        "umbra.task={name} umbra.seconds={} {}",
        length.seconds,
        if length.long { "umbra.long" } else { "" }
    );
    let (cpus, memory) = (case.cpus.to_string(), format!("{}M", case.program.memory_mib()));
    let arguments = ["--accel", "soft", "--no-reboot", "--stats", "--cpus", &cpus, "--memory", &memory];
    let mut guest = umbra.boot_initrd(kernel, &root.initrd, &words, &arguments)?;
    guest.expect(&format!("soak: begin {name} processors {cpus}"), BOOT_LIMIT)?;
    guest.expect("soak: end ", limit(case.program, length))?;
    guest.finish_with(0, END_LIMIT)?;
    judge(case.program, length, &guest.lines)
        .map_err(|error| anyhow!("{error:#}; its lines:{}", said(&guest.lines)))?;
    let took = guest.lines.last().map_or(Duration::ZERO, |line| line.at);
    Ok(Outcome { took, told: share(&guest.lines) })
}

/// The guest's own lines, for a message.
fn said(lines: &[Line]) -> String {
    let own = lines.iter().filter(|line| line.text.contains("soak: "));
    own.map(|line| format!("\n  {:8.2} {}", line.at.as_secs_f64(), line.text)).collect()
}

fn limit(program: Program, length: Length) -> Duration {
    match (program, length.long) {
        // Workers end when their time is over; those that were told late on a busy machine, later.
        (Program::Stress, _) => Duration::from_secs(length.seconds * 3 / 2) + SHORT_LIMIT,
        (_, true) => LONG_LIMIT,
        (_, false) => SHORT_LIMIT,
    }
}

/// What is part of this program.
fn bring_up_to_date(root: &Path) -> Result<()> {
    let folder = root.join("soak");
    for (name, text) in FILES {
        cache::write_file(&folder.join(name), text.as_bytes())?;
    }
    cache::write_file(&folder.join("great.c"), source::c_file().as_bytes())
}

/// Whether the task ended well, wrote what it must, and left the kernel's log clean.
pub(super) fn judge(program: Program, length: Length, lines: &[Line]) -> Result<()> {
    let rest =
        |line: &Line, word: &str| line.text.split_once(word).map(|(_, rest)| rest.trim_end().to_owned());
    let says: Vec<String> = lines.iter().filter_map(|line| rest(line, "soak: says ")).collect();
    let end = lines.iter().find_map(|line| rest(line, "soak: end ")).context("the task never ended")?;
    ensure!(end == format!("{} code 0", program.name()), "the task ended as `{end}`");
    if let Some(complaint) = lines.iter().find_map(|line| rest(line, "soak: kernel ")) {
        bail!("the guest's kernel complained: {complaint}");
    }
    if let Some(bad) = says.iter().find(|line| UNWANTED.iter().any(|word| line.contains(word))) {
        bail!("the task complained: {bad}");
    }
    for (wanted, times) in wanted(program, length) {
        let count = says.iter().filter(|line| line.contains(&wanted)).count();
        ensure!(count == times, "`{wanted}` was written {count} times instead of {times}");
    }
    Ok(())
}

/// What the task must write, and how often.
fn wanted(program: Program, length: Length) -> Vec<(String, usize)> {
    let line = |text: &str, times| (text.to_owned(), times);
    let work_c = |times| WORK_C.map(|text| line(text, times));
    let rounds = |many| if length.long { many } else { 1 };
    match program {
        Program::Stress => vec![
            line("dispatching hogs: 2 cpu, 2 vm, 2 fork, 2 switch, 2 mmap", 1),
            line("] cpu ", 1),
            line("] vm ", 1),
            line("] fork ", 1),
            line("] mmap ", 1),
            line("] successful run completed", 1),
        ],
        Program::Gcc => {
            let mut all = Vec::from(work_c(2));
            if length.long {
                all.push(line("great 200", 1));
            }
            all
        }
        Program::Node => vec![(format!("main {WORK_JS}"), rounds(40)), (format!("workers 1 {WORK_JS}"), 1)],
        Program::Java => vec![line(WORK_JAVA, rounds(10))],
        Program::I386 => {
            let mut all = Vec::from(work_c(2));
            all.extend([line("pointers 32", 1), line(WORK_PL, 1)]);
            if length.long {
                all.push(line("] successful run completed", 1));
            }
            all
        }
        Program::Memtest => Vec::new(),
    }
}

/// The line that tells the share of translated code.
fn share(lines: &[Line]) -> String {
    let found = lines.iter().rev().find(|line| line.text.contains("% of instructions"));
    found.map_or_else(
        || "nothing counted".to_owned(),
        |line| line.text.trim_start_matches("umbra: ").to_owned(),
    )
}
