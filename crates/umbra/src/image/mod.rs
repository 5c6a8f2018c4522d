//! `umbra image`: work on disk images. Options, exit codes, output and messages are those of `qemu-img` 10.0, so that a
//! script moves by changing the name; started by the name `qemu-img` it says so too.
//!
//! Nothing here knows of virtual machines: it is a tool over `umbra_block`.

mod amend;
mod bench;
mod bitmap;
mod check;
mod commit;
mod compare;
mod convert;
mod copy;
mod create;
mod dd;
mod failure;
mod files;
mod getopt;
mod info;
mod json;
mod json_read;
mod keyval;
mod map;
mod measure;
mod mount;
mod open;
mod options;
mod overlay;
mod partial;
mod progress;
mod protocol;
mod rebase;
mod resize;
mod secret;
mod serve;
mod size;
mod snapshot;
mod target;
mod tls;
mod tree;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use umbra_block::{Environment, Registry};

use failure::{Failure, Outcome};
use files::Files;
use getopt::{Opt, Parsed};
use options::Command;
use progress::{Progress, Signals};

/// The name under which this program is `qemu-img`.
pub const QEMU_NAME: &str = "qemu-img";
/// The version whose behaviour it has.
const QEMU_VERSION: &str = "10.0.2";

const STANDARD: &[Opt] = &[
    Opt::flag('h', "help", ""),
    Opt::flag('V', "version", ""),
    // Nothing is traced, but scripts may say so.
    Opt::value('T', "trace", "TRACE", ""),
];

/// What every command works with.
struct Tool {
    /// The name that messages begin with.
    program: &'static str,
    environment: Environment,
    /// Certificates, by the names of their objects.
    tls: tls::TlsObjects,
    signals: Signals,
}

/// Runs the tool. `qemu` says that it was started by that name; `words` do not include it.
pub fn main(qemu: bool, words: Vec<OsString>) -> ExitCode {
    let program = if qemu { QEMU_NAME } else { "umbra image" };
    let mut texts = Vec::with_capacity(words.len());
    for word in words {
        match word.into_string() {
            Ok(text) => texts.push(text),
            Err(word) => {
                complain(program, &format!("'{}' is not UTF-8; give the file another name", word.display()));
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::from(dispatch(program, &texts))
}

/// All formats.
fn registry() -> Registry {
    let mut registry = Registry::builtin();
    umbra_block_formats::register(&mut registry);
    protocol::register(&mut registry);
    registry
}

fn dispatch(program: &'static str, words: &[String]) -> u8 {
    // Options before the command are the tool's own.
    let mut own = 0;
    while let Some(word) = words.get(own).filter(|word| word.starts_with('-')) {
        own += if word == "-T" || word == "--trace" { 2 } else { 1 };
    }
    let own = own.min(words.len());
    let parsed = getopt::parse(STANDARD, &words[..own]);
    for (key, _) in &parsed.options {
        match *key {
            "help" => {
                let registry = registry();
                let formats: Vec<&str> = registry.iter().map(|driver| driver.name()).collect();
                print(&options::overview(program, &formats));
                return 0;
            }
            "version" => {
                print(&format!("{program} version {QEMU_VERSION} (Umbra {})\n", env!("CARGO_PKG_VERSION")));
                return 0;
            }
            _ => {}
        }
    }
    for text in parsed.all("trace") {
        match trace(program, text) {
            Ok(true) => return 0,
            Ok(false) => {}
            Err(message) => {
                tell(&message);
                return 1;
            }
        }
    }
    if let Some(error) = parsed.error {
        complain(program, &error.to_string());
        return hint(program, "");
    }
    let Some(name) = words.get(own) else {
        complain(program, "Not enough arguments");
        return hint(program, "");
    };
    let Some(command) = options::find(name) else {
        complain(program, &format!("Command not found: {name}"));
        return hint(program, "");
    };
    let parsed = parse(command, &words[own + 1..]);
    if parsed.has("help") {
        print(&command.help(program));
        return 0;
    }
    if let Some(text) = parsed.all("object").find_map(secret::help) {
        print(&text);
        return 0;
    }
    if let Some(error) = parsed.error {
        complain(&format!("{program} {name}"), &error.to_string());
        return hint(program, name);
    }
    match run(program, command, &parsed) {
        Ok(code) => code,
        Err(failure) => {
            complain(program, &failure.message);
            if failure.usage {
                hint(program, name);
            }
            failure.code
        }
    }
}

/// Reads what is to be traced. There are no events, so it is only looked at; true where it asks which there are.
fn trace(program: &str, text: &str) -> Result<bool, String> {
    let mut pairs = keyval::pairs(text).map_err(|error| format!("{program}: {error}"))?;
    // The event stands first, without a name.
    if let Some((first, value)) = pairs.first_mut()
        && text.split([',', '=']).next() == Some(first)
        && value == "on"
    {
        *value = std::mem::replace(first, "enable".to_owned());
    }
    for (key, value) in &pairs {
        match key.as_str() {
            "enable" if value == "help" || value == "?" => return Ok(true),
            "enable" if value.contains('*') => {}
            "enable" => complain(program, &format!("warning: trace event '{value}' does not exist")),
            "file" => {}
            "events" => {
                std::fs::File::open(value)
                    .map_err(|error| format!("{program}:{value}: {}", failure::reason(&error)))?;
            }
            other => return Err(format!("{program}: Invalid parameter '{other}'")),
        }
    }
    Ok(false)
}

/// Reads a command's words. The last of `resize` is a size, which may begin with a minus as options do.
fn parse(command: &Command, words: &[String]) -> Parsed {
    let is_size = |word: &&String| {
        word.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    match words.split_last().filter(|(last, _)| command.name == "resize" && is_size(last)) {
        Some((size, before)) => {
            let mut parsed = getopt::parse(command.options, before);
            parsed.operands.push(size.clone());
            parsed
        }
        None => getopt::parse(command.options, words),
    }
}

fn run(program: &'static str, command: &'static Command, parsed: &Parsed) -> Outcome {
    let signals =
        Signals::watch().map_err(|error| Failure::new(format!("cannot watch for signals: {error}")))?;
    let mut environment = Environment::new(registry());
    let (secrets, tls) = tls::split(parsed.all("object"))?;
    environment.secrets = secret::read_all(secrets.into_iter())?;
    environment.opener = Arc::new(Files::new(tls.clone(), signals.cancel().clone()));
    let tool = Tool { program, environment, tls, signals };
    (command.run)(&tool, parsed)
}

impl Tool {
    /// Says something on standard error.
    fn say(&self, message: &str) {
        complain(self.program, message);
    }

    /// Progress of this command.
    fn progress(&self, parsed: &Parsed) -> Progress {
        Progress::new(parsed.has("progress"), parsed.has("quiet"), &self.signals)
    }

    /// The one operand.
    fn one_name<'p>(&self, parsed: &'p Parsed) -> Outcome<&'p str> {
        match parsed.operands.as_slice() {
            [name] => Ok(name),
            _ => Err(Failure::usage("Expecting one image file name")),
        }
    }

    /// Whether JSON is wanted.
    fn wants_json(&self, parsed: &Parsed) -> Outcome<bool> {
        match parsed.last("output") {
            None | Some("human") => Ok(false),
            Some("json") => Ok(true),
            Some(other) => Err(Failure::usage(format!("--output expects 'human' or 'json' not '{other}'"))),
        }
    }
}

/// Prints to standard output. A reader that has gone away has what it wanted, and is told nothing more.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        if error.kind() != std::io::ErrorKind::BrokenPipe {
            complain("standard output", &failure::reason(&error));
        }
        std::process::exit(1);
    }
}

/// Writes a line to standard error.
fn tell(line: &str) {
    // Without standard error there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn complain(who: &str, message: &str) {
    tell(&format!("{who}: {message}"));
}

fn hint(program: &str, command: &str) -> u8 {
    let space = if command.is_empty() { "" } else { " " };
    tell(&format!("Try '{program}{space}{command} --help' for more info"));
    1
}
