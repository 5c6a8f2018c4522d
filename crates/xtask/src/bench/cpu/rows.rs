//! The rows: what is run, how much of it, and to which class it counts.
//!
//! Amounts are counts and sizes, never times, and such that a row takes some tenths of a second on a host of today; what
//! emulation slows by two orders of magnitude (AES-GCM) takes less. The work itself is in `init/cpu/rows.sh`.

use anyhow::{Result, bail};
use serde::Serialize;

/// What rows have in common; geometric means are taken over a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Integer work of user programs.
    Integer,
    /// Floating point, vectors, cryptography.
    Float,
    /// Numbers crunched by interpreters.
    Numeric,
    /// Work of the guest's kernel.
    Os,
    /// Programs that write code as they run.
    Jit,
}

impl Class {
    /// All of them, in the order of the report.
    pub const ALL: [Class; 5] = [Class::Integer, Class::Float, Class::Numeric, Class::Os, Class::Jit];

    /// What it is called in the report.
    pub fn name(self) -> &'static str {
        match self {
            Class::Integer => "user integer",
            Class::Float => "float, vector, crypto",
            Class::Numeric => "interpreted numeric",
            Class::Os => "OS-bound",
            Class::Jit => "JIT",
        }
    }
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Name, on the command line and in `rows.sh`.
    pub name: &'static str,
    pub class: Class,
    /// How much is done at scale 1, in the row's own unit.
    pub amount: u64,
}

/// The row that boots a small guest instead of running a program; the host has no such.
pub const BOOT: &str = "boot";

const fn row(name: &'static str, class: Class, amount: u64) -> Row {
    Row { name, class, amount }
}

/// All rows.
pub const ROWS: [Row; 22] = [
    row("shell", Class::Integer, 80_000),
    row("7zip", Class::Integer, 1024),
    row("xz", Class::Integer, 512),
    row("zstd", Class::Integer, 4096),
    row("perl", Class::Integer, 20_000),
    row("python", Class::Integer, 30_000),
    row("gcc", Class::Integer, 1),
    row("sqlite", Class::Integer, 80_000),
    row("matrix", Class::Float, 2000),
    row("sysbench", Class::Float, 2000),
    row("sha256", Class::Float, 256),
    row("aesgcm", Class::Float, 1024),
    row("rsa", Class::Float, 400),
    row("pynum", Class::Numeric, 60_000),
    row("perlnum", Class::Numeric, 350),
    row("forkexec", Class::Os, 500),
    row("pipe", Class::Os, 200_000),
    row("get", Class::Os, 3000),
    row("fault", Class::Os, 15_000),
    row("switch", Class::Os, 150_000),
    row(BOOT, Class::Os, 1),
    row("node", Class::Jit, 40),
];

/// The rows of these names, in the table's order; all where none is named.
pub fn select(names: &[String]) -> Result<Vec<Row>> {
    let known = || ROWS.map(|row| row.name).join(", ");
    for name in names {
        if !ROWS.iter().any(|row| row.name == name) {
            bail!("there is no row {name}; the rows are {}", known());
        }
    }
    let wanted = |row: &Row| names.is_empty() || names.iter().any(|name| name == row.name);
    Ok(ROWS.into_iter().filter(wanted).collect())
}
