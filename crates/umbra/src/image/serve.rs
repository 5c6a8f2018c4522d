//! `serve`: images as exports of an NBD server, over a Unix socket and TCP.
//!
//! Letters are those of `qemu-nbd` where it has the same option. It ends with its last client unless it is persistent, and
//! when it is asked to (Ctrl-C): what clients have ordered is carried out, everything is made durable, its socket goes.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use umbra_block::{Disk, Options};
use umbra_nbd::{Address, Endpoint, Export, Listener, PORT, ServeOptions, Server};

use super::failure::{Doing, Failure, Outcome};
use super::getopt::Parsed;
use super::json::{Json, Object};
use super::open::{Cache, Want};
use super::{Tool, open, overlay, print, size};

/// Clients at once, where nobody says otherwise.
const CLIENTS: usize = 16;
const CLIENTS_MAX: usize = 1000;
/// Lines about clients' mistakes in a stretch of time.
const LINES: u32 = 10;
const STRETCH: Duration = Duration::from_secs(10);

/// An image, and the name that clients ask for.
#[derive(Debug, PartialEq, Eq)]
struct Named<'a> {
    name: String,
    image: &'a str,
}

/// What is told of an export.
struct Told {
    name: String,
    image: String,
    format: String,
    bytes: u64,
    read_only: bool,
    addresses: Vec<String>,
}

pub fn run(tool: &Tool, parsed: &Parsed) -> Outcome {
    let json = tool.wants_json(parsed)? || parsed.has("json");
    let named = names(parsed)?;
    let clients_max = match parsed.last("shared") {
        None => CLIENTS,
        Some(text) => match size::bounded("shared", text, 0..=CLIENTS_MAX as u64)? {
            0 => CLIENTS_MAX,
            number => number as usize,
        },
    };
    let tls = match parsed.last("tls-creds") {
        None if parsed.has("tls-any-client") => {
            return Err(Failure::new("--tls-any-client needs --tls-creds"));
        }
        None => None,
        Some(name) => {
            let loaded = tool.tls.server(name, parsed.has("tls-any-client"));
            Some(loaded.map_err(|error| Failure::new(format!("TLS certificates '{name}': {error}")))?)
        }
    };
    let exports = open_all(tool, parsed, &named)?;
    let disks: Vec<Arc<Disk>> = exports.iter().map(|export| export.disk.clone()).collect();
    let listeners = listen(parsed)?;
    let by_tls = tls.is_some();
    warn_of_open_doors(tool, &listeners, by_tls);
    let server = Arc::new(Server::new(exports, tls).map_err(failed)?);
    let told = told(&server, &named, &listeners, by_tls);
    if json {
        print(&format!("{}\n", json_of(&told).pretty()));
    } else if !parsed.has("quiet") {
        told.iter().for_each(|export| print(&export.human()));
    }
    let options = ServeOptions {
        clients_max,
        persistent: parsed.has("persistent"),
        stop: tool.signals.cancel().clone(),
    };
    let quota = Quota::default();
    let program = tool.program;
    let tell = move |error: &umbra_nbd::Error| {
        if let Some(line) = quota.admit(error) {
            super::complain(program, &line);
        }
    };
    let served = server.run(&listeners, &options, Arc::new(tell)).map_err(failed);
    drop(listeners);
    for disk in disks {
        let name = disk.node().name().to_owned();
        disk.drained(|node| node.format().close()).doing(|| format!("Could not close '{name}'"))?;
    }
    served.map(|_| 0)
}

fn failed(error: umbra_nbd::Error) -> Failure {
    Failure::new(error.to_string())
}

/// What the operands name: `NAME=IMAGE`, or an image alone.
fn names(parsed: &Parsed) -> Outcome<Vec<Named<'_>>> {
    let image_opts = parsed.has("image-opts");
    let named: Vec<Named<'_>> = parsed.operands.iter().map(|word| named(word, image_opts)).collect();
    match (named.len(), parsed.last("export-name")) {
        (0, _) => Err(Failure::usage("Expecting an image file name")),
        (1, Some(name)) => Ok(vec![Named { name: name.to_owned(), image: &parsed.operands[0] }]),
        (_, Some(_)) => Err(Failure::usage("--export-name is for one image; several are named NAME=FILE")),
        (1, None) => Ok(named),
        (_, None) if named.iter().any(|one| one.name.is_empty()) => {
            Err(Failure::usage("Several images need names: NAME=FILE"))
        }
        (_, None) => Ok(named),
    }
}

/// A name stands before the first `=`, and has nothing in it that a path, an address or an option has.
fn named(word: &str, image_opts: bool) -> Named<'_> {
    let is_option = |name: &str| image_opts && (name == "driver" || name.contains('.'));
    match word.split_once('=') {
        Some((name, image)) if !name.contains(['/', ':', ',']) && !is_option(name) && !name.is_empty() => {
            Named { name: name.to_owned(), image }
        }
        _ => Named { name: String::new(), image: word },
    }
}

fn open_all(tool: &Tool, parsed: &Parsed, named: &[Named<'_>]) -> Outcome<Vec<Export>> {
    let read_only = parsed.has("read-only");
    let snapshot = parsed.has("snapshot");
    let cache = Cache::parse(parsed.last("cache"), "cache mode")?;
    let mut policy = Options::new();
    for name in ["discard", "detect-zeroes"] {
        if let Some(mode) = parsed.last(name) {
            policy.set(name, mode);
        }
    }
    let mut exports = Vec::new();
    for Named { name, image } in named {
        let want = Want { cache, ..Want::new(parsed, image)? };
        let want = if read_only || snapshot { want } else { want.writable() };
        let disk = match snapshot && !read_only {
            true => overlay::open(tool, &want, &policy)?,
            false => {
                let mut spec = tool.spec(&want)?;
                for (name, value) in policy.iter() {
                    spec.options.set(name, value);
                }
                let disk = tool.open_spec(&spec, cache).doing(|| format!("Could not open '{image}'"))?;
                open::warn_of_guess(&want, &spec, &disk);
                disk
            }
        };
        let bitmaps = parsed.all("bitmap").map(str::to_owned).collect();
        let export = Export {
            name: name.clone(),
            description: parsed.last("description").unwrap_or_default().to_owned(),
            disk: Arc::new(disk),
            read_only,
            bitmaps,
        };
        check_bitmaps(&export)?;
        exports.push(export);
    }
    Ok(exports)
}

/// Bitmaps that clients shall see are there, are whole, and stay as they are where nobody may write.
fn check_bitmaps(export: &Export) -> Outcome<()> {
    for name in &export.bitmaps {
        let Some((_, bitmap)) = export.bitmap(name)? else {
            return Err(Failure::new(format!("Bitmap '{name}' is not found")));
        };
        if bitmap.in_use {
            return Err(Failure::new(format!("Bitmap '{name}' is inconsistent and cannot be used")));
        }
        if export.read_only && bitmap.auto {
            return Err(Failure::new(format!("Enabled bitmap '{name}' incompatible with readonly export")));
        }
    }
    Ok(())
}

fn listen(parsed: &Parsed) -> Outcome<Vec<Listener>> {
    let mut listeners = Vec::new();
    if let Some(path) = parsed.last("socket") {
        listeners.push(Listener::unix(Path::new(path)).map_err(failed)?);
    }
    let (bind, port) = (parsed.last("bind"), parsed.last("port"));
    if listeners.is_empty() || bind.is_some() || port.is_some() {
        let port = match port {
            None => PORT,
            Some(text) => {
                text.parse().map_err(|_| Failure::new(format!("Invalid port '{text}': it is 0 to 65535")))?
            }
        };
        // Whoever wants to be reached from elsewhere says so.
        listeners.push(Listener::tcp(bind.unwrap_or("127.0.0.1"), port).map_err(failed)?);
    }
    Ok(listeners)
}

fn warn_of_open_doors(tool: &Tool, listeners: &[Listener], by_tls: bool) {
    for listener in listeners {
        if let Endpoint::Tcp { host, .. } = listener.endpoint()
            && host.parse().is_ok_and(|address: IpAddr| !address.is_loopback())
            && !by_tls
        {
            tool.say(&format!(
                "warning: whoever reaches {} can use what is served there; --tls-creds lets in only clients with a certificate",
                listener.endpoint()
            ));
        }
    }
}

fn told(server: &Server, named: &[Named<'_>], listeners: &[Listener], by_tls: bool) -> Vec<Told> {
    let address = |listener: &Listener, name: &str| {
        let address = Address::new(listener.endpoint(), name);
        if by_tls { address.by_tls().to_string() } else { address.to_string() }
    };
    let one = |(export, named): (&Export, &Named<'_>)| Told {
        name: export.name.clone(),
        image: named.image.to_owned(),
        format: export.disk.node().format_name().to_owned(),
        bytes: export.disk.size(),
        read_only: export.read_only,
        addresses: listeners.iter().map(|listener| address(listener, &export.name)).collect(),
    };
    server.exports().iter().zip(named).map(one).collect()
}

impl Told {
    fn human(&self) -> String {
        let Told { image, format, bytes, read_only, addresses, .. } = self;
        let how = if *read_only { ", read-only" } else { "" };
        format!("serving {image} ({format}, {}{how}) at {}\n", size::human(*bytes), addresses.join(" and "))
    }
}

fn json_of(told: &[Told]) -> Json {
    let one = |export: &Told| -> Json {
        let addresses: Vec<Json> = export.addresses.iter().map(|one| Json::from(one.as_str())).collect();
        Object::default()
            .with("name", export.name.as_str())
            .with("filename", export.image.as_str())
            .with("format", export.format.as_str())
            .with("virtual-size", export.bytes)
            .with("read-only", export.read_only)
            .with("addresses", addresses)
            .into()
    };
    let exports: Vec<Json> = told.iter().map(one).collect();
    Object::default().with("pid", std::process::id()).with("exports", exports).into()
}

/// Bounds what is said about clients: whoever connects can make mistakes as fast as the network carries them.
#[derive(Debug, Default)]
struct Quota(Mutex<Option<(Instant, u32)>>);

impl Quota {
    /// A line for an error, if there is room for one.
    fn admit(&self, error: &umbra_nbd::Error) -> Option<String> {
        let mut stretch = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (began, count) = match *stretch {
            Some((began, count)) if now.duration_since(began) < STRETCH => (began, count),
            _ => (now, 0),
        };
        *stretch = Some((began, count.saturating_add(1)));
        match count {
            0..LINES => Some(format!("a client was let go: {error}")),
            LINES => Some("more clients were let go; they are not told of for a while".to_owned()),
            _ => None,
        }
    }
}

#[cfg(test)]
#[path = "serve_test.rs"]
mod serve_test;
