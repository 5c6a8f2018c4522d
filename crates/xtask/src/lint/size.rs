//! Files of at most 1,000 lines, functions of at most 70.
//!
//! A file's lines are all of them. A function's are the lines of its body that hold code: blank lines and whole-line
//! comments are free, so that nobody saves on explanations. This is how clippy's `too_many_lines` counts too.

use std::path::Path;

use anyhow::Result;
use syn::visit::{self, Visit};

use super::{Finding, sources};

/// Greatest number of lines of a file.
pub(super) const FILE_LINES_MAX: usize = 1000;
/// Greatest number of code lines of a function body.
pub(super) const FUNCTION_LINES_MAX: usize = 70;

pub(super) fn run(root: &Path) -> Result<Vec<Finding>> {
    Ok(sources::read_all(root)?.iter().flat_map(|source| check(&source.path, &source.text)).collect())
}

/// Checks one file.
pub(super) fn check(path: &Path, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        findings.push(Finding {
            file: path.to_path_buf(),
            line: FILE_LINES_MAX + 1,
            what: format!("the file has {lines} lines, the limit is {FILE_LINES_MAX}"),
            cure: "split it by concept".into(),
        });
    }
    match syn::parse_file(text) {
        Ok(tree) => {
            let mut visitor = Functions { path, lines: text.lines().collect(), findings: &mut findings };
            visitor.visit_file(&tree);
        }
        Err(error) => findings.push(Finding {
            file: path.to_path_buf(),
            line: error.span().start().line,
            what: format!("cannot be parsed: {error}"),
            cure: "make it compile".into(),
        }),
    }
    findings
}

struct Functions<'a> {
    path: &'a Path,
    lines: Vec<&'a str>,
    findings: &'a mut Vec<Finding>,
}

impl Functions<'_> {
    fn measure(&mut self, signature: &syn::Signature, body: &syn::Block) {
        let open = body.brace_token.span.open().start().line;
        let close = body.brace_token.span.close().start().line;
        // The lines strictly between the braces; a body on one line has none and is short enough.
        let inside = self.lines.get(open..close.saturating_sub(1)).unwrap_or_default();
        let count = count_code_lines(inside);
        if count > FUNCTION_LINES_MAX {
            self.findings.push(Finding {
                file: self.path.to_path_buf(),
                line: signature.fn_token.span.start().line,
                what: format!(
                    "function `{}` has {count} lines of code, the limit is {FUNCTION_LINES_MAX}",
                    signature.ident
                ),
                cure: "give its parts names of their own".into(),
            });
        }
    }
}

fn count_code_lines(lines: &[&str]) -> usize {
    lines.iter().map(|line| line.trim()).filter(|line| !line.is_empty() && !line.starts_with("//")).count()
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.measure(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.measure(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(body) = &item.default {
            self.measure(&item.sig, body);
        }
        visit::visit_trait_item_fn(self, item);
    }
}
