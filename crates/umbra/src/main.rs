//! `umbra`: the command line.
#![forbid(unsafe_code)]

mod accel;
mod broker;
mod cli;
mod commands;
mod console;
mod disk;
mod events;
mod guest;
mod image;
mod net;
mod paths;
mod protocol;
mod run;
mod stats;
mod terminal;
mod worker;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command};

fn main() -> ExitCode {
    // The image tool reads its own command line: scripts know its grammar by another name.
    let mut words = std::env::args_os();
    let program = words.next().unwrap_or_default();
    if Path::new(&program).file_name().is_some_and(|name| name == image::QEMU_NAME) {
        return image::main(true, words.collect());
    }
    let done = |result: anyhow::Result<()>| result.map(|()| ExitCode::SUCCESS);
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Restore(args) => run::restore(args),
        Command::Pause(args) => done(commands::pause(&args)),
        Command::Resume(args) => done(commands::resume(&args)),
        Command::Save(args) => done(commands::save(&args)),
        Command::Stop(args) => done(commands::stop(&args)),
        Command::Ls(args) => done(commands::list(&args)),
        Command::Image { words } => Ok(image::main(false, words)),
        Command::Worker { parent } => done(worker::main(parent)),
    };
    result.unwrap_or_else(|e| {
        terminal::put_back();
        terminal::say(&format!("{e:#}"));
        ExitCode::from(1)
    })
}
