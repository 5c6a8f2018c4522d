//! `unsafe` stands where the architecture lets it stand, and says why it is sound.
//!
//! The text is read as tokens, not as syntax, so that an `unsafe` inside a macro call or a macro's definition counts
//! like any other. A `// SAFETY:` comment belongs directly above the line of the `unsafe`, or above the statement
//! that contains it; attributes may stand between.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::{Finding, sources};

/// Crates that may hold `unsafe`, and where in them (a path prefix below the crate's folder).
const ALLOWED: [(&str, &str); 9] = [
    ("memory", ""),
    ("engine-kvm", ""),
    ("engine-soft", ""),
    ("vfio", ""),
    ("block", "src/io"),
    ("virtio", "src/buffer.rs"),
    ("sandbox", ""),
    ("agent", "guest"),
    ("testkit", ""),
];

/// The attribute that every other crate's root carries.
const FORBID: &str = "#![forbid(unsafe_code)]";

/// A reason shorter than "as above" is no reason.
const REASON_LENGTH_MIN: usize = 8;

pub(super) fn run(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for source in sources::read_all(root)? {
        findings.extend(check(&source.path, &source.text));
    }
    let metadata = cargo_metadata::MetadataCommand::new()
        .current_dir(root)
        .no_deps()
        .exec()
        .context("cannot read cargo metadata")?;
    for package in metadata.workspace_packages() {
        for target in &package.targets {
            if !(target.is_lib() || target.is_bin() || target.is_proc_macro()) {
                continue;
            }
            let path = target.src_path.as_std_path();
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            findings.extend(check_root(path.strip_prefix(root).unwrap_or(path), &text));
        }
    }
    Ok(findings)
}

/// Where `unsafe` may stand in the crate of `path`: a prefix below the crate's folder, or nowhere.
fn allowed_below(path: &Path) -> Option<&'static str> {
    let name = sources::crate_of(path)?;
    ALLOWED.iter().find(|(allowed, _)| *allowed == name).map(|(_, below)| *below)
}

fn is_allowed(path: &Path) -> bool {
    let (Some(name), Some(below)) = (sources::crate_of(path), allowed_below(path)) else { return false };
    let relative = path.strip_prefix(Path::new("crates").join(name)).unwrap_or(path);
    relative.to_string_lossy().starts_with(below)
}

/// Checks that the root file of a crate outside the list forbids unsafe code.
pub(super) fn check_root(path: &Path, text: &str) -> Option<Finding> {
    let missing = allowed_below(path).is_none() && !text.lines().any(|line| line.trim() == FORBID);
    missing.then(|| Finding {
        file: path.to_path_buf(),
        line: 1,
        what: format!("the crate's root does not say `{FORBID}`"),
        cure: "add it below the module's documentation".into(),
    })
}

/// Checks every `unsafe` block, impl and extern block of one file.
pub(super) fn check(path: &Path, text: &str) -> Vec<Finding> {
    let tokens: TokenStream = match text.parse() {
        Ok(tokens) => tokens,
        Err(error) => {
            return vec![Finding {
                file: path.to_path_buf(),
                line: error.span().start().line,
                what: "cannot be split into tokens".into(),
                cure: "make it compile".into(),
            }];
        }
    };
    let mut places = HashMap::new();
    scan(tokens, None, &mut places);
    let mut places: Vec<_> = places.into_iter().collect();
    places.sort_unstable();
    let lines: Vec<&str> = text.lines().collect();
    let mut findings = Vec::new();
    for (line, statement) in places {
        if !is_allowed(path) {
            findings.push(Finding {
                file: path.to_path_buf(),
                line,
                what: "`unsafe` outside the crates that may have it".into(),
                cure: "do it safely, or move it to one of: memory, engine-kvm, engine-soft, vfio, block/src/io, \
                       sandbox, testkit"
                    .into(),
            });
        } else if !has_reason(&lines, line) && !has_reason(&lines, statement) {
            findings.push(Finding {
                file: path.to_path_buf(),
                line,
                what: "`unsafe` without its reason".into(),
                cure: "write above it `// SAFETY:` and why the contract holds here".into(),
            });
        }
    }
    findings
}

/// Collects line of `unsafe` -> first line of the statement around it.
fn scan(tokens: TokenStream, outer: Option<usize>, places: &mut HashMap<usize, usize>) {
    let mut statement: Option<usize> = None;
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        let line = token.span().start().line;
        // In parentheses and brackets the statement is the one outside.
        let start = *statement.get_or_insert(outer.unwrap_or(line));
        match token {
            TokenTree::Ident(ident) if ident == "unsafe" && begins_block_or_impl(tokens.peek()) => {
                places.entry(line).or_insert(start);
            }
            TokenTree::Group(group) => {
                let braces = group.delimiter() == Delimiter::Brace;
                scan(group.stream(), if braces { None } else { Some(start) }, places);
                if braces {
                    statement = None;
                }
            }
            TokenTree::Punct(punct) if matches!(punct.as_char(), ';' | ',') => statement = None,
            _ => {}
        }
    }
}

/// `unsafe {`, `unsafe impl` and `unsafe extern` promise something; `unsafe fn` and `unsafe trait` ask for it.
fn begins_block_or_impl(next: Option<&TokenTree>) -> bool {
    match next {
        Some(TokenTree::Group(group)) => group.delimiter() == Delimiter::Brace,
        Some(TokenTree::Ident(ident)) => ident == "impl",
        _ => false,
    }
}

/// Whether a comment with a reason ends directly above `line` (from one), attributes aside, or stands on it.
fn has_reason(lines: &[&str], line: usize) -> bool {
    let index = line.saturating_sub(1);
    if lines.get(index).is_some_and(|text| reason_in(text)) {
        return true;
    }
    lines[..index.min(lines.len())]
        .iter()
        .rev()
        .map(|text| text.trim())
        .take_while(|text| text.starts_with("//") || text.starts_with("#["))
        .any(reason_in)
}

fn reason_in(text: &str) -> bool {
    text.split_once("SAFETY:").is_some_and(|(before, reason)| {
        (before.contains("//") || before.contains("/*")) && reason.trim().len() >= REASON_LENGTH_MIN
    })
}
