//! The cases: which program, on which kernel, on how many processors; and the roots that they run in.

use anyhow::{Result, bail};

use crate::apt::Architecture;
use crate::root::Recipe;

/// How long a case takes that can choose.
pub(super) const MINUTES: u64 = 10;

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// stress-ng, whose workers verify what they do.
    Stress,
    /// gcc, and what it makes.
    Gcc,
    /// Node.js: a JIT, its threads, WebAssembly.
    Node,
    /// A JVM that runs a compiler, and then what that made.
    Java,
    /// 32-bit programs on a 64-bit kernel.
    I386,
    /// memtest86+ in place of a kernel.
    Memtest,
}

/// How much of a case is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Length {
    /// For what can choose.
    pub seconds: u64,
    /// Whether the rest is run in its long form.
    pub long: bool,
}

impl Length {
    /// What the test run does.
    pub const SMOKE: Length = Length { seconds: 10, long: false };
}

/// One case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Case {
    pub program: Program,
    /// Series of the kernel; none where the program is one itself.
    pub kernel: Option<&'static str>,
    pub cpus: u32,
}

const fn recipe(
    name: &'static str,
    architecture: Architecture,
    packages: &'static [&'static str],
) -> Recipe<'static> {
    Recipe { name, number: 1, architecture, packages, dependencies: true, not_needed: &[] }
}

const STRESS: Recipe = recipe("soak-stress", Architecture::Amd64, &["busybox-static", "stress-ng"]);
const GCC: Recipe = recipe("soak-gcc", Architecture::Amd64, &["busybox-static", "gcc-12", "libc6-dev"]);
const NODE: Recipe = recipe("soak-node", Architecture::Amd64, &["busybox-static", "nodejs"]);
/// A JVM's package depends on much of a desktop, of which the JVM itself loads nothing.
const JAVA: Recipe = Recipe {
    dependencies: false,
    ..recipe(
        "soak-java",
        Architecture::Amd64,
        &[
            "busybox-static",
            "libc6",
            "libecj-java",
            "libgcc-s1",
            "libstdc++6",
            "openjdk-17-jre-headless",
            "zlib1g",
        ],
    )
};
const I386: Recipe = recipe(
    "soak-i386",
    Architecture::I386,
    &["busybox-static", "gcc-12", "libc-bin", "libc6-dev", "perl-base", "stress-ng"],
);
pub(super) const MEMTEST: Recipe = recipe("soak-memtest", Architecture::Amd64, &["memtest86+"]);

/// The roots of Linux guests.
pub(super) const LINUX_ROOTS: [Recipe; 5] = [STRESS, GCC, NODE, JAVA, I386];

impl Program {
    /// What it is called on the command line and in `tasks.sh`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Program::Stress => "stress",
            Program::Gcc => "gcc",
            Program::Node => "node",
            Program::Java => "java",
            Program::I386 => "i386",
            Program::Memtest => "memtest",
        }
    }

    /// The root of the guest that it runs in; none where it is the guest.
    pub(super) fn recipe(self) -> Option<&'static Recipe<'static>> {
        match self {
            Program::Stress => Some(&STRESS),
            Program::Gcc => Some(&GCC),
            Program::Node => Some(&NODE),
            Program::Java => Some(&JAVA),
            Program::I386 => Some(&I386),
            Program::Memtest => None,
        }
    }

    /// Memory of its guest in MiB, the root in it twice while it is unpacked.
    pub(super) fn memory_mib(self) -> u32 {
        match self {
            Program::Stress => 1024,
            Program::Gcc | Program::Node | Program::Java | Program::I386 => 1536,
            Program::Memtest => 128,
        }
    }
}

impl Case {
    /// Its name, such as `stress-6.1-2`.
    pub(super) fn name(&self) -> String {
        match (self.program, self.kernel) {
            (program, None) => program.name().into(),
            (Program::Stress, Some(kernel)) => {
                format!("{}-{kernel}-{}", self.program.name(), self.cpus)
            }
            (program, Some(kernel)) => format!("{}-{kernel}", program.name()),
        }
    }

    /// What it is, in words.
    pub(super) fn describe(&self) -> String {
        let what = match self.program {
            Program::Stress => "stress-ng --cpu 2 --vm 2 --fork 2 --switch 2 --mmap 2 --verify",
            Program::Gcc => "gcc compiles, and what it made runs",
            Program::Node => "Node.js: JIT, four workers, WebAssembly",
            Program::Java => "a JVM runs a compiler, and then what that made",
            Program::I386 => {
                "32-bit programs: gcc, what it made with x87 and SSE arithmetic, perl, stress-ng"
            }
            Program::Memtest => "one pass of memtest86+ over 128 MiB",
        };
        let cpus = self.cpus;
        match self.kernel {
            Some(kernel) => format!("{what}; Linux {kernel}, {cpus} vCPUs"),
            None => format!("{what}; {cpus} vCPU"),
        }
    }
}

/// All cases, the one first that is the short form of its program.
pub(super) fn all() -> Vec<Case> {
    let case = |program, kernel, cpus| Case { program, kernel: Some(kernel), cpus };
    let mut all: Vec<Case> = [("6.12", 2), ("6.12", 4), ("6.1", 2), ("6.1", 4)]
        .map(|(kernel, cpus)| case(Program::Stress, kernel, cpus))
        .into();
    for program in [Program::Gcc, Program::Node, Program::Java, Program::I386] {
        all.extend(["6.1", "6.12"].map(|kernel| case(program, kernel, 2)));
    }
    all.push(Case { program: Program::Memtest, kernel: None, cpus: 1 });
    all
}

/// The cases whose names are or begin with one of `names`, a whole part of it; all where none is named.
pub(super) fn select(names: &[String]) -> Result<Vec<Case>> {
    let fits = |case: &Case, wanted: &str| {
        case.name().strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    for name in names {
        if !all().iter().any(|case| fits(case, name)) {
            let known: Vec<String> = all().iter().map(Case::name).collect();
            bail!("there is no case {name}; the cases are {}", known.join(", "));
        }
    }
    let mut cases = all();
    cases.retain(|case| names.is_empty() || names.iter().any(|name| fits(case, name)));
    Ok(cases)
}
