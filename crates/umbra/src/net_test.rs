use std::net::TcpListener;

use umbra_net::user::ForwardProtocol;

use super::open::{networks_of, prepare};
use super::{NetOption, Publish, UserOption, mac_of, parse, parse_live, parse_publish, parse_removed};
use crate::cli::Cable;

#[test]
fn networks_are_read() {
    let user = UserOption::default();
    assert_eq!(parse("none"), Ok(NetOption::None));
    assert_eq!(parse("user"), Ok(NetOption::User(user.clone())));
    let all = UserOption {
        restricted: true,
        host_loopback: false,
        ipv6: false,
        mtu: 9000,
        mac: Some("52:54:00:00:00:01".into()),
    };
    let text = "user,restrict=on,host=off,ipv6=off,mtu=9000,mac=52:54:00:00:00:01";
    assert_eq!(parse(text), Ok(NetOption::User(all)));
    for (text, word) in [
        ("", "``"),
        ("slirp", "`slirp`"),
        ("none,mtu=1500", "`mtu=1500`"),
        ("user,restrict", "`restrict`"),
        ("user,restrict=yes", "on or off"),
        ("user,mtu=1", "`1`"),
        ("user,mac=x", "`x`"),
        ("user,mtu=1500,mtu=1500", "twice"),
        ("user,speed=1", "`speed=`"),
    ] {
        let refused = parse(text).unwrap_err();
        assert!(refused.contains(word), "{text}: {refused}");
    }
}

#[test]
fn ports_are_read() {
    let publish =
        |protocol, host: &str, guest_port| Ok(Publish { protocol, host: host.parse().unwrap(), guest_port });
    let (tcp, udp) = (ForwardProtocol::Tcp, ForwardProtocol::Udp);
    assert_eq!(parse_publish("8080:80"), publish(tcp, "127.0.0.1:8080", 80));
    assert_eq!(parse_publish("8080:80/tcp"), publish(tcp, "127.0.0.1:8080", 80));
    assert_eq!(parse_publish("0.0.0.0:5353:53/udp"), publish(udp, "0.0.0.0:5353", 53));
    assert_eq!(parse_publish("[::1]:1:2"), publish(tcp, "[::1]:1", 2));
    assert_eq!(parse_live("0:80"), publish(tcp, "127.0.0.1:0", 80));
    assert_eq!(parse_removed("8080"), Ok((tcp, "127.0.0.1:8080".parse().unwrap())));
    assert_eq!(parse_removed("8080:80"), Ok((tcp, "127.0.0.1:8080".parse().unwrap())));
    assert_eq!(parse_removed("0.0.0.0:53/udp"), Ok((udp, "0.0.0.0:53".parse().unwrap())));
    assert_eq!(parse_removed("[::1]:53:5353/udp"), Ok((udp, "[::1]:53".parse().unwrap())));
    assert!(parse_removed("web").is_err());
    for (text, word) in [
        ("80", "`80`"),
        ("80:", "``"),
        (":80", "``"),
        ("0:80", "`0`"),
        ("80:99999", "`99999`"),
        ("host:1:2", "`host`"),
        ("1:2/sctp", "`sctp`"),
    ] {
        let refused = parse_publish(text).unwrap_err();
        assert!(refused.contains(word), "{text}: {refused}");
    }
}

#[test]
fn there_is_a_network_unless_none_is_asked_for() {
    let user = UserOption::default();
    assert_eq!(networks_of(&[], false).unwrap(), std::slice::from_ref(&user));
    assert_eq!(networks_of(&[NetOption::None], false).unwrap(), []);
    assert_eq!(networks_of(&[], true).unwrap(), std::slice::from_ref(&user));
    assert_eq!(networks_of(&[NetOption::User(user.clone())], true).unwrap(), std::slice::from_ref(&user));
    assert!(networks_of(&[NetOption::None], true).is_err());
    assert!(networks_of(&[NetOption::None, NetOption::User(user)], false).is_err());
}

#[test]
fn cards_have_addresses_of_their_own() {
    let uuid = [0x5f; 16];
    assert_eq!(mac_of(uuid, 0), "52:54:00:5f:5f:5f");
    assert_eq!(mac_of(uuid, 1), "52:54:00:5f:5f:60");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = taken.local_addr().unwrap();
    let publish = vec![Publish { protocol: ForwardProtocol::Tcp, host, guest_port: 80 }];
    let cable = Cable { publish, pcap: None };
    let refused = prepare(&[UserOption::default()], &cable, "vm").err().unwrap();
    assert!(refused.to_string().contains(&host.to_string()), "{refused}");
}
