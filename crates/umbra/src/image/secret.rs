//! `--object secret`: a password by a file, a descriptor, a prompt or, for who insists, on the command line.
//!
//! Properties are those of QEMU's object `secret` (`data`, `file`, `format`, `keyid`, `iv`), and two more: `fd`, and
//! `prompt=on`.

use std::io::{Read, Write};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use umbra_block::{Options, Secrets, open_secret};
use zeroize::Zeroizing;

use super::failure::{Failure, Outcome, reason};
use super::{json_read, keyval, tell};

/// A password is no longer than this, so that a name given by mistake does no harm.
const LEN_MAX: u64 = 64 << 10;

/// Objects of QEMU's that there are not here.
const OTHERS: [&str; 18] = [
    "authz-list",
    "authz-list-file",
    "authz-pam",
    "authz-simple",
    "can-bus",
    "iothread",
    "main-loop",
    "memory-backend-file",
    "memory-backend-memfd",
    "memory-backend-ram",
    "pr-manager-helper",
    "rng-random",
    "secret_keyring",
    "thread-context",
    "throttle-group",
    "tls-cipher-suites",
    "tls-creds-anon",
    "tls-creds-psk",
];

/// Makes the objects of a command line. One that is encrypted may come before the one that opens it.
pub fn read_all<'a>(definitions: impl Iterator<Item = &'a str>) -> Outcome<Secrets> {
    let mut secrets = Secrets::default();
    let mut given = Vec::new();
    for definition in definitions {
        let secret = Given::read(definition)?;
        if given.iter().any(|other: &Given| other.id == secret.id) {
            return Err(Failure::new(format!(
                "attempt to add duplicate property '{}' to object (type 'container')",
                secret.id
            )));
        }
        given.push(secret);
    }
    while !given.is_empty() {
        let ready =
            given.iter().position(|one| one.keyid.as_ref().is_none_or(|keyid| secrets.get(keyid).is_ok()));
        // One whose key is nowhere, or is encrypted with itself.
        let one = given.remove(ready.unwrap_or(0));
        let id = one.id.clone();
        secrets.add(id, one.open(&secrets)?);
    }
    Ok(secrets)
}

/// A secret as the command line has it.
struct Given {
    id: String,
    bytes: Zeroizing<Vec<u8>>,
    is_base64: bool,
    /// The secret that this one is encrypted with.
    keyid: Option<String>,
    vector: Option<String>,
}

impl Given {
    fn read(definition: &str) -> Outcome<Given> {
        let mut options = properties(definition).map_err(Failure::new)?;
        let kind = options.take("qom-type").ok_or_else(|| Failure::new("Parameter 'qom-type' is missing"))?;
        if kind != "secret" {
            return Err(Failure::new(match OTHERS.contains(&kind.as_str()) {
                true => format!("invalid object type: {kind}"),
                false => format!("Parameter 'qom-type' does not accept value '{kind}'"),
            }));
        }
        let id = options.take("id").ok_or_else(|| Failure::new("Parameter 'id' is missing"))?;
        check_id(&id)?;
        let is_base64 = match options.take("format").as_deref() {
            None | Some("raw") => false,
            Some("base64") => true,
            Some(other) => {
                return Err(Failure::new(format!("Parameter 'format' does not accept value '{other}'")));
            }
        };
        let (keyid, vector) = (options.take("keyid"), options.take("iv"));
        let (data, file) = (options.take("data"), options.take("file"));
        let (descriptor, prompt) = (options.take("fd"), options.take_bool("prompt")?.unwrap_or(false));
        if let Some((name, _)) = options.iter().next() {
            return Err(Failure::new(format!("Parameter '{name}' is unexpected")));
        }
        let bytes = match (data, file, descriptor, prompt) {
            (Some(data), None, None, false) => data.into_bytes().into(),
            (None, Some(file), None, false) => from_file(&file)?,
            (None, None, Some(number), false) => from_descriptor(&number)?,
            (None, None, None, true) => from_prompt(&id)?,
            (None, None, None, false) => {
                return Err(Failure::new("Either 'file' or 'data' must be provided"));
            }
            _ => return Err(Failure::new("'file' and 'data' are mutually exclusive")),
        };
        Ok(Given { id, bytes, is_base64, keyid, vector })
    }

    fn open(self, secrets: &Secrets) -> Outcome<Zeroizing<Vec<u8>>> {
        let bytes = if self.is_base64 { base64(&self.bytes)? } else { self.bytes };
        let Some(keyid) = &self.keyid else {
            return match self.vector {
                None => Ok(bytes),
                Some(_) => {
                    Err(Failure::new("'iv' is only for a secret that is encrypted with another (keyid)"))
                }
            };
        };
        let key = secrets.get(keyid)?;
        let vector = self.vector.ok_or_else(|| Failure::new("IV is required to decrypt secret"))?;
        Ok(open_secret(key, &base64(vector.as_bytes())?, &bytes)?)
    }
}

/// What every object's name is made of.
pub fn check_id(id: &str) -> Outcome<()> {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
    match id.starts_with(|letter: char| letter.is_ascii_alphabetic()) && id.chars().all(fits) {
        true => Ok(()),
        false => Err(Failure::new(
            "Parameter 'id' expects an identifier\nIdentifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
        )),
    }
}

/// The properties of an object; `qom-type` is its type.
pub fn properties(definition: &str) -> Result<Options, String> {
    if definition.starts_with('{') {
        return keyval::flatten(&json_read::read(definition)?);
    }
    let mut pairs = keyval::pairs(definition)?;
    // The type stands first, without a name.
    if let Some((first, value)) = pairs.first_mut()
        && value == "on"
        && !definition.starts_with("qom-type=")
    {
        *value = std::mem::replace(first, "qom-type".to_owned());
    }
    Ok(pairs.into_iter().collect())
}

/// What `--object help` and `--object TYPE,help` show, if a definition is that.
pub fn help(definition: &str) -> Option<String> {
    let options = properties(definition).ok()?;
    let kind = options.get("qom-type")?;
    if kind == "help" || kind == "?" {
        return Some("List of user creatable objects:\n  secret\n  tls-creds-x509\n".to_owned());
    }
    let asked = ["help", "?"].iter().any(|key| options.get(key).is_some());
    let properties: &[&str] = match kind {
        "secret" => &[
            "data=<string>",
            "fd=<int>",
            "file=<string>",
            "format=raw|base64",
            "iv=<string>",
            "keyid=<string>",
            "prompt=<bool>",
        ],
        "tls-creds-x509" => &["dir=<string>", "endpoint=client|server", "verify-peer=<bool>"],
        // Of one that there is not, which there are.
        _ if asked => return help("help"),
        _ => return None,
    };
    let lines: String = properties.iter().map(|one| format!("  {one}\n")).collect();
    asked.then(|| format!("{kind} options:\n{lines}"))
}

fn from_file(name: &str) -> Outcome<Zeroizing<Vec<u8>>> {
    let unreadable = |error: std::io::Error| {
        Failure::new(format!("Unable to read {name}: Failed to open file “{name}”: {}", reason(&error)))
    };
    let file = std::fs::File::open(name).map_err(unreadable)?;
    limited(file).map_err(unreadable)
}

fn from_descriptor(number: &str) -> Outcome<Zeroizing<Vec<u8>>> {
    let wrong = || Failure::new(format!("fd={number} is no open file descriptor"));
    let number: u32 = number.parse().map_err(|_| wrong())?;
    // By name, so that the descriptor stays whoever's it is.
    let file = std::fs::File::open(format!("/proc/self/fd/{number}")).map_err(|_| wrong())?;
    let mut secret = limited(file).map_err(|_| wrong())?;
    // What writes to a pipe ends its line.
    if secret.last() == Some(&b'\n') {
        secret.pop();
    }
    Ok(secret)
}

fn limited(file: std::fs::File) -> std::io::Result<Zeroizing<Vec<u8>>> {
    // Room for all of it at once: what a list leaves behind when it grows would not be wiped.
    let mut secret = Zeroizing::new(Vec::with_capacity(LEN_MAX as usize + 64));
    file.take(LEN_MAX + 1).read_to_end(&mut secret)?;
    match secret.len() as u64 > LEN_MAX {
        true => Err(std::io::Error::other("it is longer than 64 KiB")),
        false => Ok(secret),
    }
}

fn from_prompt(id: &str) -> Outcome<Zeroizing<Vec<u8>>> {
    let failed =
        |error: std::io::Error| Failure::new(format!("cannot ask for secret '{id}': {}", reason(&error)));
    let terminal = std::fs::File::options().read(true).write(true).open("/dev/tty").map_err(failed)?;
    let before = tcgetattr(&terminal).map_err(|errno| failed(errno.into()))?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    (&terminal).write_all(format!("Secret '{id}': ").as_bytes()).map_err(failed)?;
    tcsetattr(&terminal, OptionalActions::Flush, &silent).map_err(|errno| failed(errno.into()))?;
    let read = line(&terminal);
    tcsetattr(&terminal, OptionalActions::Flush, &before).map_err(|errno| failed(errno.into()))?;
    (&terminal).write_all(b"\n").map_err(failed)?;
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Err(Failure::interrupted()),
        read => read.map_err(failed),
    }
}

/// A line, without its end. A signal ends the wait for it, as it would not a read.
fn line(terminal: &std::fs::File) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(Vec::with_capacity(LEN_MAX as usize));
    let mut byte = Zeroizing::new([0]);
    let mut terminal = terminal;
    poll(&mut [PollFd::new(&terminal, PollFlags::IN)], None)?;
    while line.len() < LEN_MAX as usize && terminal.read(&mut *byte)? > 0 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    Ok(line)
}

/// RFC 4648, section 4, as lenient as QEMU: digits at the end that make no group of four are passed over, and an image may
/// have been locked with what is left. That is said, for nobody can mean it.
fn base64(text: &[u8]) -> Outcome<Zeroizing<Vec<u8>>> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut digits = Zeroizing::new(Vec::with_capacity(text.len()));
    digits.extend(text.iter().copied().filter(|&byte| byte != b'\n'));
    let (groups, rest) = digits.as_chunks::<4>();
    let mut bytes = Zeroizing::new(Vec::with_capacity(digits.len()));
    if text.contains(&0) {
        return Err(Failure::new("Base64 data contains embedded NUL characters"));
    }
    let value = |digit: u8| match digit {
        b'=' => Some(0),
        _ => ALPHABET.iter().position(|&one| one == digit),
    };
    if digits.iter().any(|&digit| value(digit).is_none()) {
        return Err(Failure::new("Base64 data contains invalid characters"));
    }
    for group in groups {
        let word = group.iter().fold(0, |word, &digit| word << 6 | value(digit).unwrap_or(0) as u32);
        let [_, first, second, third] = word.to_be_bytes();
        bytes.push(first);
        let more = [(group[2], second), (group[3], third)];
        bytes.extend(more.iter().filter(|(digit, _)| *digit != b'=').map(|(_, byte)| byte));
    }
    if !rest.is_empty() {
        tell("warning: the base64 of a secret is not padded with '='; its last digits are passed over");
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "secret_test.rs"]
mod secret_test;
