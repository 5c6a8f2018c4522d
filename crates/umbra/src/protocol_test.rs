use super::*;

/// Sends and receives; what is too long does not come whole.
fn pass<T: Serialize + DeserializeOwned>(message: &T) -> T {
    let (ours, theirs) = Link::pair().unwrap();
    Link::new(theirs).send(message, &[]).unwrap();
    ours.receive().unwrap().unwrap().0
}

#[test]
fn the_longest_counters_pass() {
    // As many counters as an engine has, with values that are longer than any.
    let names = (0..12).map(|n| (format!("counter number {n:5}"), u64::MAX)).collect::<Vec<_>>();
    let all = vec![names; 254];
    let Message::Answer(Ok(Answer::Stats(back))) = pass(&Message::Answer(Ok(Answer::Stats(all.clone()))))
    else {
        panic!("another message");
    };
    assert_eq!(back, all);
}

#[test]
fn the_longest_specification_passes() {
    let mut spec = MachineSpec::new("n".repeat(64), 254, 64 << 30);
    spec.cmdline = "\u{1}".repeat(16 << 10);
    spec.check().unwrap();
    let Message::Created(back) = pass(&Message::Created(spec.clone())) else { panic!("another message") };
    assert_eq!(back, spec);
}

#[test]
fn no_more_descriptors_come_than_a_message_may_have() {
    let (ours, theirs) = Link::pair().unwrap();
    let passed = rustix::fs::memfd_create("passed", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    for count in [DESCRIPTORS_MAX, DESCRIPTORS_MAX + 1, DESCRIPTORS_MAX + 3, DESCRIPTORS_MAX + 12] {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2 * DESCRIPTORS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = vec![passed.as_fd(); count];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let packet = serde_json::to_vec(&Message::Answer(Err("no".to_owned()))).unwrap();
        sendmsg(theirs.as_fd(), &[IoSlice::new(&packet)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
        let got = ours.receive::<Message>();
        match got {
            Ok(Some((_, descriptors))) => {
                assert_eq!((count, descriptors.len()), (DESCRIPTORS_MAX, DESCRIPTORS_MAX))
            }
            other => assert!(count > DESCRIPTORS_MAX, "{other:?}"),
        }
    }
}
