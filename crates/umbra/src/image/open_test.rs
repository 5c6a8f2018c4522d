use umbra_block::BackingSpec;

use super::{Cache, file_spec, from_options};
use crate::image::{json_read, keyval};

#[test]
fn names_may_begin_with_a_protocol() {
    for (name, protocol, rest) in [
        ("a.qcow2", "file", "a.qcow2"),
        ("file:a.qcow2", "file", "a.qcow2"),
        ("./a:b", "file", "./a:b"),
        ("a b:c", "file", "a b:c"),
        (":a", "file", ":a"),
        ("nbd://host/x", "nbd", "nbd://host:10809/x"),
        ("nbd+unix:///?socket=s", "nbd+unix", "nbd+unix://?socket=s"),
        ("nbds://host/x?tls-hostname=y", "nbds", "nbds://host/x?tls-hostname=y"),
        ("bogus:a", "bogus", "bogus:a"),
    ] {
        let spec = file_spec(name);
        assert_eq!((spec.protocol.as_str(), spec.name.as_str()), (protocol, rest), "{name}");
    }
}

#[test]
fn a_node_is_made_of_its_options() {
    let options =
        keyval::options("driver=qcow2,file.driver=file,file.filename=a,,b,encrypt.key-secret=s0").unwrap();
    let spec = from_options(options).unwrap();
    assert_eq!((spec.format.as_deref(), spec.file.name.as_str()), (Some("qcow2"), "a,b"));
    assert_eq!(spec.options.get("encrypt.key-secret"), Some("s0"));
    let spec = from_options(keyval::options("driver=file,filename=a").unwrap()).unwrap();
    assert_eq!((spec.format.as_deref(), spec.file.name.as_str()), (Some("file"), "a"));
}

#[test]
fn a_backing_node_may_be_given() {
    let text = r#"{"driver":"qcow2","file":{"driver":"file","filename":"a"},"backing":{"driver":"raw","file.filename":"b"}}"#;
    let spec = from_options(keyval::flatten(&json_read::read(text).unwrap()).unwrap()).unwrap();
    let BackingSpec::Node(backing) = spec.backing else { panic!("no backing node") };
    assert_eq!((backing.format.as_deref(), backing.file.name.as_str()), (Some("raw"), "b"));
    let text = r#"{"driver":"qcow2","file.filename":"a","backing":null}"#;
    let spec = from_options(keyval::flatten(&json_read::read(text).unwrap()).unwrap()).unwrap();
    assert_eq!(spec.backing, BackingSpec::None);
}

#[test]
fn wrong_options_are_told_in_the_words_of_qemu_img() {
    for (text, message) in [
        ("filename=a", "Must specify either driver or file"),
        ("driver=qcow2", "A block device must be specified for \"file\""),
        ("file=foo", "Cannot find device='foo' nor node-name='foo'"),
        ("file.driver=file", "The 'file' block driver requires a file name"),
        (
            "driver=qcow2,file.filename=a,backing=x",
            "Could not open backing file: Cannot find device='x' nor node-name='x'",
        ),
        ("file.filename=a,file.bogus=1", "Block protocol 'file' doesn't support the option 'bogus'"),
    ] {
        let failure = from_options(keyval::options(text).unwrap()).expect_err(text);
        assert_eq!(failure.message, message, "{text}");
    }
}

#[test]
fn cache_modes() {
    assert_eq!(Cache::parse(Some("none"), "cache option").unwrap(), Cache { direct: true, no_flush: false });
    assert!(Cache::parse(Some("unsafe"), "cache option").unwrap().no_flush);
    let failure = Cache::parse(Some("bogus"), "cache option").unwrap_err();
    assert_eq!(failure.message, "Invalid cache option: bogus");
}
