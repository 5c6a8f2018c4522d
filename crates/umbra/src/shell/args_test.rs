use super::*;

#[test]
fn places_are_of_the_host_or_of_a_guest() {
    let guest = |name: &str, path: &str| Ok(Place::Guest(name.into(), path.into()));
    assert_eq!(parse_place("web:/etc/hosts"), guest("web", "/etc/hosts"));
    assert_eq!(parse_place("web:a:b"), guest("web", "a:b"));
    for path in ["/etc/hosts", "file", "./a:b", "/a:b"] {
        assert_eq!(parse_place(path), Ok(Place::Host(path.into())));
    }
    for wrong in ["", "web:", "a b:/x"] {
        assert!(parse_place(wrong).is_err(), "{wrong}");
    }
    assert!(parse_variable("A=").is_ok() && parse_variable("=1").is_err() && parse_variable("A").is_err());
}
