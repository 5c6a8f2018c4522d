//! Networks: the guest's own tools judge what they get from servers of the host, and the host what it gets from the guest's.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::net_guest;
use xtask::umbra::Guest;

use super::{BOOT, STEP, Setting, arguments, fact};

/// Bytes of the large file, which shows how fast the network is.
const LARGE: usize = 256 << 20;

impl Setting {
    fn boot_network(&self, series: &str, task: &str, more: &[&str]) -> Result<Guest> {
        let kernel = self.guests.kernel(series)?;
        let initrd = net_guest::initrd(&self.guests, kernel, self.scratch.path())?;
        let options = arguments(&[&["--memory", "512M"], more].concat());
        self.umbra.boot_initrd(kernel, &initrd, task, &options)
    }
}

fn md5(bytes: &[u8]) -> Result<String> {
    let mut process = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    process.stdin.take().context("no input")?.write_all(bytes)?;
    let output = process.wait_with_output()?;
    Ok(String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned())
}

/// Two ports of the host's next to each other: a web server with two files, and one that takes all that is sent to it. The first one's
/// number, and the lengths of what the second one got.
fn serve(file: Vec<u8>) -> Result<(u16, std::sync::mpsc::Receiver<usize>)> {
    let pair = || {
        let web = TcpListener::bind("127.0.0.1:0").ok()?;
        let next = web.local_addr().ok()?.port().checked_add(1)?;
        Some((web, TcpListener::bind(("127.0.0.1", next)).ok()?))
    };
    let (web, sink) = (0..50).find_map(|_| pair()).context("no two free ports in a row")?;
    let port = web.local_addr()?.port();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = web.accept() {
            // A client that goes away is the guest's business.
            let _ = answer(stream, &file);
        }
    });
    let (told, lengths) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = sink.accept() {
            let mut total = 0;
            let mut bytes = vec![0; 1 << 18];
            while let Ok(read @ 1..) = stream.read(&mut bytes) {
                total += read;
            }
            if told.send(total).is_err() {
                return;
            }
        }
    });
    Ok((port, lengths))
}

fn answer(mut stream: TcpStream, file: &[u8]) -> Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().context("no request")??;
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let large = request.contains("/large");
    let len = if large { LARGE } else { file.len() };
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {len}\r\n\r\n")?;
    if large {
        let zeros = vec![0; 1 << 20];
        for _ in 0..LARGE >> 20 {
            stream.write_all(&zeros)?;
        }
    } else {
        stream.write_all(file)?;
    }
    Ok(())
}

/// The seconds between the two times at the end of a line.
fn seconds(line: &str) -> Option<f64> {
    let mut words = line.trim().rsplit(' ');
    let ended: f64 = words.next()?.parse().ok()?;
    let begun: f64 = words.next()?.parse().ok()?;
    Some(ended - begun)
}

/// A guest gets an address, asks, fetches and sends.
fn goes_out(series: &str, cpus: &str) -> Result<()> {
    let setting = Setting::new()?;
    let file: Vec<u8> = (0..3_000_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let sum = md5(&file)?;
    let (port, lengths) = serve(file)?;
    let pcap = setting.scratch.path().join("net.pcapng");
    let task = format!("umbra.task=client umbra.port={port} umbra.sum={sum}");
    let options = ["--cpus", cpus, "--net", "user,mac=52:54:00:12:34:56", "--pcap", &pcap.to_string_lossy()];
    let mut guest = setting.boot_network(series, &task, &options)?;
    let facts = guest.expect("guest: net", BOOT)?.text;
    for (name, value) in [
        ("ip", "10.0.2.15"),
        ("mask", "24"),
        ("router", "10.0.2.2"),
        ("dns", "10.0.2.3"),
        ("mtu", "1500"),
        ("mac", "52:54:00:12:34:56"),
    ] {
        ensure!(fact(&facts, name) == Some(value), "{facts}");
    }
    guest.expect("guest: ipv6 1", STEP)?;
    let mut figures = String::new();
    for what in ["guest: received in ", "guest: sent in "] {
        let line = guest.expect(what, BOOT)?.text;
        let seconds = seconds(&line).context("no times")?;
        write!(figures, "{what}{:.0} MiB/s; ", (LARGE >> 20) as f64 / seconds)?;
    }
    guest.expect("guest: client done", STEP)?;
    guest.finish_with(0, STEP)?;
    ensure!(lengths.recv()? == LARGE, "something was lost on the way out");
    eprintln!("{figures}");
    let captured = std::fs::metadata(&pcap)?.len();
    ensure!(captured > 2 * LARGE as u64, "{captured} bytes were captured");
    Ok(())
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn a_guest_goes_out() -> Result<()> {
    goes_out("6.12", "1")
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn a_guest_with_two_processors_and_an_older_kernel_goes_out() -> Result<()> {
    goes_out("6.1", "2")
}

#[test]
#[ignore = "boots a whole guest: cargo xtask test boot"]
fn a_guest_is_reached_by_its_ports_and_after_it_was_saved() -> Result<()> {
    let setting = Setting::new()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let publish = format!("{port}:80");
    let options = ["-p", &publish, "--cpu-model", "portable"];
    let mut guest = setting.boot_network("6.12", "umbra.task=server", &options)?;
    let line = guest.expect("guest: serves ", BOOT)?.text;
    let sum =
        line.split("serves ").nth(1).and_then(|text| text.split(' ').next()).context("no sum")?.to_owned();
    guest.expect("guest: ready", STEP)?;
    let fetch = || -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(b"GET /file HTTP/1.0\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("no head")?;
        md5(&answer[end + 4..])
    };
    for _ in 0..3 {
        ensure!(fetch()? == sum, "the file is another");
    }
    let saved = setting.scratch.path().join("saved");
    setting.umbra.control(&["save", "guest", &saved.to_string_lossy()])?;
    guest.finish_with(0, STEP)?;
    let mut again = setting.umbra.restore(&saved, &["--accel", "soft", "-p", &publish])?;
    // It says nothing when it goes on.
    let begun = Instant::now();
    let sum_again = loop {
        match fetch() {
            Ok(sum) => break sum,
            Err(_) if begun.elapsed() < STEP => std::thread::sleep(Duration::from_millis(100)),
            Err(error) => return Err(error),
        }
    };
    ensure!(sum_again == sum, "the file is another after the guest was saved");
    setting.umbra.control(&["stop", "--force", "guest"])?;
    again.finish_with(0, STEP)
}
