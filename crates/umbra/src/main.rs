//! `umbra`: the command line.
#![forbid(unsafe_code)]

mod accel;
mod attach;
mod broker;
mod build;
mod cli;
mod commands;
mod console;
mod detach;
mod disk;
mod events;
mod guest;
mod hub;
mod image;
mod kept;
mod list;
mod log;
mod net;
mod paths;
mod protocol;
mod record;
mod run;
mod shell;
mod stats;
mod terminal;
mod vsock;
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
        Command::Start(args) => commands::start(&args),
        Command::Wait(args) => commands::wait(&args),
        Command::Ls(args) => done(list::list(&args)),
        Command::Console(args) => done(attach::console(&args)),
        Command::Logs(args) => done(attach::logs(&args)),
        Command::Rm(args) => done(commands::remove(&args)),
        Command::Port { command } => done(commands::port(&command)),
        Command::Shell(args) => shell::shell(args),
        Command::Exec(args) => shell::exec(args),
        Command::Cp(args) => done(shell::copy::copy(&args)),
        Command::Image { words } if build::is_ours(&words) => build::main(words),
        Command::Image { words } => Ok(image::main(false, words)),
        Command::Worker { parent } => done(worker::main(parent)),
    };
    result.unwrap_or_else(|e| {
        terminal::put_back();
        terminal::say(&format!("{e:#}"));
        ExitCode::from(1)
    })
}
