use super::{Command, Keys};

#[test]
fn typing_goes_to_the_guest_and_our_commands_do_not() {
    let mut keys = Keys::of_machine();
    assert_eq!(keys.take(b"ls\r"), (b"ls\r".to_vec(), "", None));
    assert_eq!(keys.take(b"a\x01\x01b"), (b"a\x01b".to_vec(), "", None));
    assert_eq!(keys.take(b"\x01k"), (b"\x01k".to_vec(), "", None), "another key goes with its Ctrl-A");
    let (guest, show, command) = keys.take(b"q\x01h");
    assert_eq!((guest, command), (b"q".to_vec(), None));
    assert!(show.contains("Ctrl-A x"));
    assert_eq!(keys.take(b"\x01"), (vec![], "", None));
    assert_eq!(keys.take(b"xrest"), (vec![], "", Some(Command::Leave)), "an escape may be split over reads");
}

#[test]
fn a_visitor_leaves_by_two_keys_and_a_machine_by_one() {
    assert_eq!(Keys::of_visitor().take(b"q\x01d"), (b"q".to_vec(), "", Some(Command::Leave)));
    assert_eq!(Keys::of_visitor().take(b"\x01x"), (vec![], "", Some(Command::Leave)));
    assert_eq!(Keys::of_machine().take(b"\x01d"), (b"\x01d".to_vec(), "", None));
}
