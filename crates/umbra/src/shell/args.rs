//! The options of commands in the guest and of files, for [`crate::cli`].

use clap::Args;

use crate::cli::parse_name;

/// How a command runs.
#[derive(Debug, Clone, Default, Args)]
pub struct How {
    /// As this user; the administrator by default
    #[arg(long, short, value_name = "USER", default_value = "", hide_default_value = true)]
    pub user: String,
    /// In this folder; the user's home by default
    #[arg(long, short = 'w', value_name = "FOLDER", default_value = "", hide_default_value = true)]
    pub workdir: String,
    /// With this variable. Give it again for further ones
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub env: Vec<String>,
    /// How long to wait for a guest whose agent does not answer yet
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub wait: u64,
}

/// Options of `shell`.
#[derive(Debug, Args)]
pub struct ShellArgs {
    /// The machine's name
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// How it runs.
    #[command(flatten)]
    pub how: How,
    /// A program and its arguments instead of the user's shell
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Options of `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// How it runs.
    #[command(flatten)]
    pub how: How,
    /// Give it a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// Give it no input
    #[arg(long, short, conflicts_with = "tty")]
    pub no_input: bool,
    /// The machine's name
    #[arg(value_parser = parse_name)]
    pub name: String,
    /// A program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Options of `cp`.
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// What to copy: a file or folder of this host, or NAME:PATH of a guest
    #[arg(value_name = "FROM", value_parser = parse_place)]
    pub from: Place,
    /// Where to: NAME:PATH of a guest, or a path of this host; into it if it is a folder
    #[arg(value_name = "TO", value_parser = parse_place)]
    pub to: Place,
    /// How long to wait for a guest whose agent does not answer yet
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub wait: u64,
}

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A path of this host.
    Host(String),
    /// A machine, and a path of its guest.
    Guest(String, String),
}

fn parse_variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err(format!("`{text}` is no variable; write NAME=VALUE")),
    }
}

/// Reads `NAME:PATH` or a path. A path of this host that has a colon is told by a `/` before it, as in `./a:b`.
fn parse_place(text: &str) -> Result<Place, String> {
    match text.split_once(':') {
        Some((name, path)) if !name.contains('/') && !name.is_empty() => {
            if path.is_empty() {
                return Err(format!("`{text}` names no path of the guest; write NAME:PATH"));
            }
            Ok(Place::Guest(parse_name(name)?, path.to_owned()))
        }
        _ if text.is_empty() => Err("a path is empty".into()),
        _ => Ok(Place::Host(text.to_owned())),
    }
}

#[cfg(test)]
#[path = "args_test.rs"]
mod args_test;
