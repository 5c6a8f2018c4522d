use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::Capture;
use crate::user::{Direct, User, UserSpec};
use crate::{Backend, Frame, Received};

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// Blocks by type and body.
fn blocks(mut bytes: &[u8]) -> Vec<(usize, Vec<u8>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (kind, len) = (word(bytes, 0), word(bytes, 4));
        assert_eq!(word(bytes, len - 4), len);
        assert_eq!(len % 4, 0);
        found.push((kind, bytes[8..len - 4].to_vec()));
        bytes = &bytes[len..];
    }
    found
}

fn arp_request() -> Vec<u8> {
    let mut request = vec![0xff; 43];
    request[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    request[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request[22..28].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    request[28..32].copy_from_slice(&[10, 0, 2, 15]);
    request[38..42].copy_from_slice(&[10, 0, 2, 2]);
    request
}

fn backend() -> Box<User> {
    Box::new(User::new(UserSpec { prefix6: None, ..UserSpec::default() }, Box::new(Direct)).unwrap().0)
}

#[test]
fn both_directions_are_written_down_and_cut() {
    for snap_len in [64, 1 << 17] {
        let file = Shared::default();
        let mut capture = Capture::new(backend(), Box::new(file.clone()), snap_len).unwrap();
        let now = Instant::now();
        let mut long = arp_request();
        long.resize(99, 0);
        let mut frame = Frame::default();
        frame.set(&long);
        capture.send(now, &frame);
        // What the guest has no room for has not crossed the cable yet.
        assert_eq!(capture.receive(now, &mut |_, _| false), Received::Refused);
        let mut answer = Vec::new();
        capture.receive(now, &mut |_, parts| {
            answer = parts.concat();
            true
        });
        assert_eq!(capture.receive(now, &mut |_, _| true), Received::Nothing);
        let blocks = blocks(&file.0.lock().unwrap());
        let kinds: Vec<usize> = blocks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [0x0a0d_0d0a, 1, 6, 6]);
        assert_eq!(word(&blocks[1].1, 4), snap_len as usize);
        for ((_, body), (bytes, flags)) in blocks[2..].iter().zip([(long, 2), (answer, 1)]) {
            let kept = bytes.len().min(snap_len as usize);
            assert_eq!((word(body, 12), word(body, 16)), (kept, bytes.len()));
            assert_eq!(body[20..20 + kept], bytes[..kept]);
            assert_eq!(word(body, 20 + kept.next_multiple_of(4) + 4), flags);
        }
    }
}

#[test]
fn a_file_that_is_full_ends_the_capture_and_not_the_network() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    assert!(Capture::new(backend(), Box::new(Full(0)), 64).is_err());
    let mut capture = Capture::new(backend(), Box::new(Full(1)), 64).unwrap();
    let now = Instant::now();
    let mut frame = Frame::default();
    frame.set(&arp_request());
    for _ in 0..3 {
        capture.send(now, &frame);
        capture.tick(now);
        assert_eq!(capture.receive(now, &mut |_, _| true), Received::Frame);
    }
}
