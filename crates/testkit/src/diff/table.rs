//! The table of what has been compared: each form with each kind of operand, in each mode.
//!
//! Lines of comma-separated values, one a form and operand. Each number counts cases that ran on both sides and raised no exception, over all
//! runs that were added; in the columns of sequences, programs that came to their end and have the form.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use iced_x86::{Code, Instruction, OpCodeOperandKind as K, OpKind};

use super::operands::is_register_or_memory;
use super::state::Bits;

/// What the operand that can be one or the other is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operand {
    /// No memory.
    Register,
    /// Memory.
    Memory,
    /// One element in memory, for all.
    Broadcast,
}

impl Operand {
    /// That of an instruction.
    pub fn of(i: &Instruction) -> Self {
        let memory = |k: OpKind| {
            !matches!(
                k,
                OpKind::Register
                    | OpKind::NearBranch16
                    | OpKind::NearBranch32
                    | OpKind::NearBranch64
                    | OpKind::FarBranch16
                    | OpKind::FarBranch32
                    | OpKind::Immediate8
                    | OpKind::Immediate8_2nd
                    | OpKind::Immediate16
                    | OpKind::Immediate32
                    | OpKind::Immediate64
                    | OpKind::Immediate8to16
                    | OpKind::Immediate8to32
                    | OpKind::Immediate8to64
                    | OpKind::Immediate32to64
            )
        };
        match i.op_kinds().any(memory) {
            true if i.is_broadcast() => Self::Broadcast,
            true => Self::Memory,
            false => Self::Register,
        }
    }

    /// All that a form can have.
    pub fn all_of(code: Code) -> Vec<Self> {
        let kinds = code.op_code().op_kinds();
        let either = |k: &K| is_register_or_memory(*k);
        let memory = |k: &K| {
            let name = format!("{k:?}");
            name.starts_with("mem")
                || matches!(k, K::sibmem | K::seg_rSI | K::es_rDI | K::seg_rDI | K::seg_rBX_al)
        };
        let (has_either, has_memory) = (kinds.iter().any(either), kinds.iter().any(memory));
        let mut all = Vec::new();
        if has_either || !has_memory {
            all.push(Self::Register);
        }
        if has_either || has_memory {
            all.push(Self::Memory);
        }
        if code.op_code().can_broadcast() {
            all.push(Self::Broadcast);
        }
        all
    }

    fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Memory => "memory",
            Self::Broadcast => "broadcast",
        }
    }
}

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// Single instructions.
    Single(Bits),
    /// Sequences of 64-bit or 32-bit code.
    Sequences(Bits),
}

impl Column {
    fn index(self) -> usize {
        match self {
            Self::Single(Bits::SixtyFour) => 0,
            Self::Single(Bits::ThirtyTwo) => 1,
            Self::Single(Bits::Sixteen) => 2,
            Self::Sequences(Bits::SixtyFour) => 3,
            Self::Sequences(_) => 4,
        }
    }
}

const HEADER: &str = "form,operand,64,32,16,64 in sequences,32 in sequences";

/// The table. A number that is missing: the mode has not that form.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Table(BTreeMap<(String, String), [Option<u64>; 5]>);

impl Table {
    /// The table in a file; an empty one if there is none.
    ///
    /// # Errors
    /// The file cannot be read, or is not a table.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).with_context(|| format!("{} is no table", path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// The table in `text`.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut lines = text.lines();
        anyhow::ensure!(lines.next() == Some(HEADER), "the first line is not the header");
        let mut table = Self::default();
        for line in lines {
            let cells: Vec<&str> = line.split(',').collect();
            let [form, operand, numbers @ ..] = &cells[..] else { anyhow::bail!("a line has too few cells") };
            anyhow::ensure!(numbers.len() == 5, "a line has not five numbers");
            let mut row = [None; 5];
            for (place, cell) in row.iter_mut().zip(numbers) {
                *place = if cell.is_empty() { None } else { Some(cell.parse()?) };
            }
            table.0.insert(((*form).to_owned(), (*operand).to_owned()), row);
        }
        Ok(table)
    }

    /// Adds `count` cases.
    pub fn add(&mut self, column: Column, form: &str, operand: Operand, count: u64) {
        let row = self.0.entry((form.to_owned(), operand.name().to_owned())).or_default();
        let place = &mut row[column.index()];
        *place = Some(place.unwrap_or(0) + count);
    }

    /// Cases of a column below `least`.
    pub fn below(&self, column: Column, least: u64) -> Vec<(&str, &str, u64)> {
        let rows = self.0.iter().filter_map(|(k, row)| row[column.index()].map(|n| (k, n)));
        rows.filter(|r| r.1 < least).map(|(k, n)| (k.0.as_str(), k.1.as_str(), n)).collect()
    }

    /// As text.
    pub fn text(&self) -> String {
        self.0.iter().fold(format!("{HEADER}\n"), |mut out, ((form, operand), row)| {
            let _ = write!(out, "{form},{operand}");
            for n in row {
                let _ = match n {
                    Some(n) => write!(out, ",{n}"),
                    None => write!(out, ","),
                };
            }
            out.push('\n');
            out
        })
    }

    /// Writes it to a file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, self.text()).with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
#[path = "table_test.rs"]
mod table_test;
