use umbra_block::Options;

use super::{Address, Credentials, Endpoint};

fn tcp(host: &str, port: u16) -> Endpoint {
    Endpoint::Tcp { host: host.into(), port }
}

#[test]
fn names_are_read() {
    for (name, endpoint, export, shown) in [
        ("nbd://h", tcp("h", 10809), "", "nbd://h:10809"),
        ("nbd://h/", tcp("h", 10809), "", "nbd://h:10809"),
        ("nbd://h:5/e%20x/y", tcp("h", 5), "e x/y", "nbd://h:5/e%20x/y"),
        ("nbd+tcp://[::1]:7/e", tcp("::1", 7), "e", "nbd://[::1]:7/e"),
        ("nbd:h:9", tcp("h", 9), "", "nbd://h:9"),
        ("nbd:h:9:exportname=a:b", tcp("h", 9), "a:b", "nbd://h:9/a:b"),
        ("nbd:unix:/s:exportname=e", Endpoint::Unix("/s".into()), "e", "nbd+unix:///e?socket=/s"),
        ("nbd+unix:///e?socket=/s", Endpoint::Unix("/s".into()), "e", "nbd+unix:///e?socket=/s"),
        ("nbd+unix://?socket=/s", Endpoint::Unix("/s".into()), "", "nbd+unix://?socket=/s"),
    ] {
        let address = Address::from_name(name).expect(name);
        assert_eq!((&address.endpoint, address.export.as_str()), (&endpoint, export), "{name}");
        assert_eq!(address.to_string(), shown, "{name}");
        assert_eq!(Address::from_name(shown).expect(shown), address, "{name}");
    }
    let by_tls = Address::from_name("nbds+unix:///e?socket=s&tls-certificates=/c&tls-hostname=h").unwrap();
    let tls = by_tls.tls.as_ref().expect("it is encrypted");
    assert_eq!((&tls.credentials, by_tls.tls_host()), (&Credentials::Folder("/c".into()), Some("h")));
    assert_eq!(by_tls.to_string(), "nbds+unix:///e?socket=s&tls-certificates=/c");
}

#[test]
fn wrong_names_are_refused() {
    for name in [
        "nbd",
        "nbd:",
        "nbd:h",
        "nbd:unix:",
        "nbd://h:x",
        "nbd://h:99999",
        "nbd://[::1",
        "nbd://[::1]x",
        "nbd://h/%",
        "nbd://h/%f",
        "nbd://h/%00",
        "nbd://h/%ff",
        "nbd://h/e?socket=s",
        "nbd://h/e?tls-certificates=s",
        "nbd+unix:///e",
        "nbd+unix://h/e?socket=s",
        "nbd+unix:///e?socket=",
        "nbds:h:5",
        "http://h/e",
    ] {
        assert!(Address::from_name(name).is_err(), "{name}");
    }
    assert!(Address::from_name(&format!("nbd://h/{}", "x".repeat(4097))).is_err());
}

fn options(text: &str) -> Options {
    text.split(',').filter_map(|pair| pair.split_once('=')).collect()
}

#[test]
fn options_are_read() {
    for (text, shown) in [
        ("server.type=unix,server.path=/s,export=e", "nbd+unix:///e?socket=/s"),
        ("path=/s", "nbd+unix://?socket=/s"),
        ("host=h", "nbd://h:10809"),
        ("host=h,port=4,export=e,read-only=on,open-timeout=3", "nbd://h:4/e"),
        ("server.type=inet,server.host=h,server.port=4,server.ipv6=off", "nbd://h:4"),
        ("host=h,tls-creds=t,tls-hostname=x", "nbds://h:10809"),
    ] {
        assert_eq!(Address::from_options(options(text)).expect(text).to_string(), shown, "{text}");
    }
    for text in [
        "",
        "export=e",
        "port=4",
        "host=h,path=/s",
        "host=h,server.type=unix,server.path=/s",
        "server.type=unix",
        "server.type=fd,server.str=3",
        "server.type=unix,server.path=/s,server.host=h",
        "host=h,other=1",
        "host=h,reconnect-delay=soon",
        "host=h,open-timeout=x",
        "host=h,tls-hostname=x",
    ] {
        assert!(Address::from_options(options(text)).is_err(), "{text}");
    }
}
