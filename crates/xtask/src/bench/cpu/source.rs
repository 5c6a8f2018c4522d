//! What the rows work on, made the same on every machine: a C file, and a text to compress.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Lines of the C file.
pub(super) const C_LINES: usize = 5000;
/// Lines of numbers in each of the C file's tables; a power of two.
const TABLE_LINES: usize = 16;
/// Size of the text.
const CORPUS_BYTES: usize = 8 << 20;

/// A linear congruential generator (Knuth's MMIX constants): the same numbers everywhere.
struct Numbers(u64);

impl Numbers {
    /// A number below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A C file of [`C_LINES`] lines: tables, and functions that loop, branch, switch, index and call each other.
pub(crate) fn c_file() -> String {
    let mut numbers = Numbers(1);
    let mut text =
        String::from("struct item { int key; unsigned size; double weight; struct item *next; };\n");
    text += "static unsigned table[256];\n";
    let mut lines = 2;
    let mut count = 0;
    loop {
        let function = c_table(count, &mut numbers) + &c_function(count, &mut numbers);
        let more = function.lines().count();
        if lines + more > C_LINES {
            break;
        }
        text += &function;
        lines += more;
        count += 1;
    }
    for line in lines..C_LINES {
        // What is left is too short for a function.
        let _ = writeln!(text, "unsigned rest{line}(unsigned a) {{ return f{}(a, {line}); }}", count - 1);
    }
    text
}

/// A table that the function of the same number looks into.
fn c_table(number: u64, numbers: &mut Numbers) -> String {
    let mut text = format!("static const unsigned char t{number}[{}] = {{\n", 16 * TABLE_LINES);
    for _ in 0..TABLE_LINES {
        let values: Vec<String> = (0..16).map(|_| numbers.below(256).to_string()).collect();
        let _ = writeln!(text, "    {},", values.join(", "));
    }
    text + "};\n"
}

fn c_function(number: u64, numbers: &mut Numbers) -> String {
    let operators = ["+", "-", "*", "^", "|", "&"];
    let mut text = format!("unsigned f{number}(unsigned a, unsigned b) {{\n");
    let mut line = |line: String| {
        text += &line;
        text.push('\n');
    };
    line(format!("    unsigned sum = {}, i;", numbers.below(1000)));
    line("    struct item first = { (int)a, b, 0.5, 0 };".into());
    match numbers.below(3) {
        0 => {
            line(format!("    for (i = 0; i < (b & {}); i++) {{", 15 + numbers.below(200)));
            line(format!(
                "        if (table[i & 255] > a) sum += table[(i * {}) & 255];",
                1 + numbers.below(50)
            ));
            line(format!("        else sum ^= a << (i & {});", 1 + numbers.below(30)));
            line("        a = a * 1664525u + 1013904223u;".into());
        }
        1 => {
            line(format!("    for (i = b & 63; i != 0; i >>= {}) {{", 1 + numbers.below(3)));
            line("        first.weight = first.weight * 1.5 + (double)i;".into());
            line("        first.key += (int)(first.weight) % 7;".into());
            line("        table[i & 255] += (unsigned)first.key;".into());
        }
        _ => {
            line("    struct item *at = &first;".into());
            line(format!("    for (i = 0; at && i < {}; i++, at = at->next) {{", 2 + numbers.below(40)));
            line("        sum += at->size / (i + 1) + (unsigned)at->key;".into());
            line("        at->size = (at->size >> 1) | (sum << 31);".into());
        }
    }
    line("    }".into());
    line(format!("    sum += t{number}[sum & {}];", 16 * TABLE_LINES - 1));
    line("    switch (a % 5) {".into());
    for case in 0..4 {
        let operator = operators[numbers.below(operators.len() as u64) as usize];
        line(format!(
            "    case {case}: sum = sum {operator} (b {operator} {}u); break;",
            numbers.below(100_000)
        ));
    }
    if number == 0 {
        line("    default: sum += b; break;".into());
    } else {
        line(format!("    default: sum += f{}(b, sum & 15); break;", numbers.below(number)));
    }
    line("    }".into());
    line("    return sum + first.size + (unsigned)first.key;".into());
    line("}".into());
    text
}

/// Text to compress: the C headers and Python modules of the root, in the order of their paths, cut to size.
pub(super) fn corpus(root: &Path) -> Result<Vec<u8>> {
    let mut paths = Vec::new();
    for folder in ["usr/include", "usr/lib/python3.11"] {
        collect(&root.join(folder), &mut paths)?;
    }
    paths.sort();
    let mut text = Vec::with_capacity(CORPUS_BYTES);
    for path in paths {
        if text.len() >= CORPUS_BYTES {
            break;
        }
        text.extend(std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    text.truncate(CORPUS_BYTES);
    Ok(text)
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, paths)?;
        } else if path.extension().is_some_and(|ending| ending == "h" || ending == "py") {
            paths.push(path);
        }
    }
    Ok(())
}
