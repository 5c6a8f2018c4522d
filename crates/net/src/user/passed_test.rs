use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use super::{Gate, Passed};
use crate::user::{Outside, Transport, UserSpec};

fn asking(change: impl FnOnce(&mut UserSpec)) -> (Passed, std::thread::JoinHandle<std::io::Result<()>>) {
    let mut spec = UserSpec::default();
    change(&mut spec);
    let gate = Gate::new(&spec);
    let (asks, answers) = Passed::pair().unwrap();
    (Passed::new(asks), std::thread::spawn(move || gate.serve(answers)))
}

fn refusal(passed: &mut Passed, transport: Transport, address: &str) -> ErrorKind {
    passed.open(transport, address.parse().unwrap()).unwrap_err().kind()
}

#[test]
fn sockets_come_connected() {
    let (mut passed, gate) = asking(|_| {});
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = passed.open(Transport::Tcp, listener.local_addr().unwrap()).unwrap();
    let (mut client, _) = listener.accept().unwrap();
    client.write_all(b"x").unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_nonblocking(false).unwrap();
    stream.read_exact(&mut [0]).unwrap();

    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let socket = UdpSocket::from(passed.open(Transport::Udp, server.local_addr().unwrap()).unwrap());
    socket.send(b"y").unwrap();
    assert_eq!(server.recv(&mut [0; 4]).unwrap(), 1);

    drop(passed);
    gate.join().unwrap().unwrap();
}

#[test]
fn the_gate_looks_at_addresses_itself() {
    let (mut passed, _gate) = asking(|spec| spec.host_loopback = false);
    for address in
        ["127.0.0.1:80", "[::1]:80", "127.0.0.2:80", "0.0.0.0:80", "[::]:80", "[::ffff:127.0.0.1]:80"]
    {
        assert_eq!(refusal(&mut passed, Transport::Tcp, address), ErrorKind::PermissionDenied, "{address}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let resolver: SocketAddr = listener.local_addr().unwrap();
    let (mut passed, _gate) = asking(|spec| {
        spec.host_loopback = false;
        spec.resolvers.push(resolver);
    });
    passed.open(Transport::Tcp, resolver).unwrap();
    let (mut passed, _gate) = asking(|spec| {
        spec.restricted = true;
        spec.resolvers.push(resolver);
    });
    assert_eq!(refusal(&mut passed, Transport::Tcp, &resolver.to_string()), ErrorKind::PermissionDenied);
}

#[test]
fn without_the_other_side_there_are_no_sockets() {
    let (asks, answers) = Passed::pair().unwrap();
    drop(answers);
    assert!(Passed::new(asks).open(Transport::Tcp, "127.0.0.1:1".parse().unwrap()).is_err());
    let (asks, answers) = Passed::pair().unwrap();
    rustix::net::send(&asks, b"nonsense", rustix::net::SendFlags::empty()).unwrap();
    let gate = Gate::new(&UserSpec::default());
    assert_eq!(gate.serve(answers).unwrap_err().kind(), ErrorKind::InvalidData);
}
